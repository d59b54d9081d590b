"""The base that several adapters share: found, compared with what each of them records, and passed on.

Two adapters belong together if their manifests record one fingerprint, or without such a record if they name one base.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merging.adapter import is_adapter
from merging.adapter_base import local_base, recorded_base, refuse_foreign_base
from merging.adapter_file import Adapter
from merging.request import PathLike
from merging.sources import Checkpoint, open_model
from storage.manifest import fingerprint


def open_shared_base(adapters: Sequence[Adapter], base: PathLike | None) -> Checkpoint | None:
    """Return the base if one was given or is needed, after checking that it is the base of every adapter.

    It is needed for DoRA, trained biases and modules saved whole, and is then by default the folder that the first
    adapter names.

    Raises:
        ValueError: the adapters belong to different bases, or the base to none of them; both are named.
    """
    _refuse_foreign_inputs(adapters, base)
    needing = next((adapter for adapter in adapters if adapter.config.dora or adapter.whole), None)
    if base is None and needing is None:
        return None
    if base is not None and Path(base).is_dir() and is_adapter(base):
        raise ValueError(f"--base {os.fspath(base)}: expected a whole model, got an adapter; give its base")
    known = open_model(base if base is not None else local_base(adapters[0].config))
    if any(recorded_base(adapter.path) for adapter in adapters):
        found = fingerprint(known.folder)
        for adapter in adapters:
            refuse_foreign_base(adapter.path, known.path, found)
    return known


def _refuse_foreign_inputs(adapters: Sequence[Adapter], base: PathLike | None) -> None:
    """Compare the bases that the adapters record or, without a record, name."""
    first = adapters[0]
    wanted = recorded_base(first.path).get("fingerprint")
    for adapter in adapters[1:]:
        got = recorded_base(adapter.path).get("fingerprint")
        if wanted is not None and got is not None:
            if got != wanted and base is None:
                raise ValueError(
                    f"{adapter.path}: expected an adapter of the base with fingerprint {str(wanted)[:12]} as "
                    f"{first.path}, got {str(got)[:12]}; merge adapters of one base"
                )
        elif base is None and adapter.config.base != first.config.base:
            raise ValueError(
                f"{adapter.config.file}: expected base_model_name_or_path {first.config.base!r} as in {first.path}, got "
                f"{adapter.config.base!r}; if both are the same model, add --base with its folder"
            )


def named_base(adapters: Sequence[Adapter], base: Checkpoint | None) -> str | None:
    """Return the base that the result names: the one that all inputs name, or else the one that was given."""
    names = {adapter.config.base for adapter in adapters}
    if len(names) == 1 and None not in names:
        return names.pop()
    return adapters[0].config.base if base is None else str(base.folder.resolve())


def base_record(adapters: Sequence[Adapter], base: Checkpoint | None) -> dict[str, Any] | None:
    """Return what the manifest says of the base: as training recorded it, or else what is known."""
    recorded = [found for adapter in adapters if (found := recorded_base(adapter.path))]
    if recorded:
        # As in a merge of whole models: without the causal mask where one input was trained so.
        return next((found for found in recorded if found.get("bidirectional")), recorded[0])
    if base is not None:
        return {"path": str(base.folder.resolve()), "fingerprint": fingerprint(base.folder)}
    named = adapters[0].config.base
    return None if named is None else {"path": named}
