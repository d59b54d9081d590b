"""Loading models quietly: no progress bars and no warning that only the library's authors can act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, LogRecord, getLogger

from transformers.utils import logging

CASTS = "bitsandbytes.autograd._functions"


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide transformers' bars, which garble the terminal of a run that draws its own, inside the block.

    Its report of tensors that are missing or more than it reads is hidden too: ``check_tensors`` refuses what matters.
    PEFT 0.21 asks transformers 5.23 for an attribute by its old name on every adapter; that warning is hidden too.
    """
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    reporter = getLogger("transformers.modeling_utils")
    reporter.addFilter(_is_no_report)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            yield
    finally:
        reporter.removeFilter(_is_no_report)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _is_no_report(record: LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def quiet_casts() -> None:
    """Say no more, at every layer of every forward pass, that LLM.int8() computes in float16; for the whole process."""
    getLogger(CASTS).setLevel(ERROR)
