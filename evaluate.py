"""Measure embedders: ``python evaluate.py --help``."""

import sys

from lightning_app.command_line import main
from lightning_app.config import EvaluateConfig

if __name__ == "__main__":
    early = "lightning_app.early:check_evaluate"
    sys.exit(main(EvaluateConfig, "lightning_app.evaluating:evaluate", positional="models", early=early))
