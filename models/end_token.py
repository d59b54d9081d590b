"""The end token that last-token pooling reads, for tokenizers whose files ask for it in a way that transformers 5 ignores."""

from __future__ import annotations

from pathlib import Path

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase


def append_eos(tokenizer: PreTrainedTokenizerBase, *, source: str, begins: bool = False) -> None:
    """Make the tokenizer end every text with its end token, keeping a begin token that it already writes.

    Last-token pooling reads the state at this token; without it, it would read the last digit.

    Args:
        tokenizer: changed in place, unless its texts already end (and begin) so.
        source: the folder it came from, for the message.
        begins: write the begin token too, when there is one and it is not written yet.

    Raises:
        ValueError: when the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer of {source}: expected an end token (eos_token), found none; set it in its files")
    ids = tokenizer("a")["input_ids"]
    has_begin = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    adds_begin = begins and tokenizer.bos_token_id is not None and not has_begin
    has_end = ids[-1] == tokenizer.eos_token_id
    if has_end and not adds_begin:
        return
    kept = [tokenizer.bos_token] if has_begin or adds_begin else []
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*kept, "$A", tokenizer.eos_token],
        pair=[*kept, "$A", "$B", tokenizer.eos_token],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in [*kept, tokenizer.eos_token]],
    )
    after = tokenizer("a")["input_ids"]
    wanted = [*([tokenizer.bos_token_id] * adds_begin), *ids, *([tokenizer.eos_token_id] * (not has_end))]
    assert after == wanted, f"{source}: {ids} became {after}"


def complete_tokenizer(folder: Path, *, begins: bool = False) -> None:
    """Rewrite the tokenizer in ``folder`` so that every text ends with the end token (and begins with its own, if asked)."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    append_eos(tokenizer, source=str(folder), begins=begins)
    tokenizer.save_pretrained(str(folder))
