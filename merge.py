"""Merge checkpoints: ``python merge.py --help``."""

from lightning_app.command_line import leave, main
from lightning_app.config import MergeConfig

if __name__ == "__main__":
    leave(main(MergeConfig, "lightning_app.merging:merge", early="lightning_app.early:check_merge"))
