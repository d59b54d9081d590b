"""Make the built-in tiny-llm: ``python pretrain.py --help``."""

import sys

from lightning_app.command_line import main
from lightning_app.pretrain_config import PretrainConfig

if __name__ == "__main__":
    sys.exit(main(PretrainConfig, "lightning_app.pretraining:pretrain"))
