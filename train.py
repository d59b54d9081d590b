"""Adapt an embedder in stages, merge the stages, report: ``python train.py --help``."""

import sys

from lightning_app.command_line import main
from lightning_app.config import TrainConfig

if __name__ == "__main__":
    sys.exit(main(TrainConfig, "lightning_app.run:train"))
