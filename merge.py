"""Merge checkpoints: ``python merge.py --help``."""

import sys

from lightning_app.command_line import main
from lightning_app.config import MergeConfig

if __name__ == "__main__":
    sys.exit(main(MergeConfig, "lightning_app.merging:merge"))
