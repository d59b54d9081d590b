"""Adapt an embedder in stages, merge the stages, report: ``python train.py --help``."""

from lightning_app.command_line import leave, main
from lightning_app.config import TrainConfig

if __name__ == "__main__":
    leave(main(TrainConfig, "lightning_app.training:train", early="lightning_app.early:check_train"))
