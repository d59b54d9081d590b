"""The search behind ``merge.py --search``: candidates scored in memory, the best one merged from file to file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.suites import Suite
from lightning_app.scoring import make_scorer
from lightning_app.search_record import SearchRecord, entry_of, show_front, write_files
from merging.card import CardNotes
from merging.engine import Complete, merge_checkpoints
from merging.front import Candidate, choose, meets, rank
from merging.measured import Measured
from merging.methods import find_method
from merging.plan import MergePlan
from merging.request import Input, PathLike
from merging.search import Strategy, Watch, refuse_search, search
from models.completion import reads_both_ways
from storage.atomic import refuse_existing

FOUND = ("t", "weights", "settings")
"""Arguments of a merge that the search finds."""
OPTIONS = ("scale", "density", "gamma", "epsilon", "normalize", "rescale", "select_topk")
"""Arguments of a merge that a method is told for each tensor, beside those."""


def search_merge(
    inputs: Sequence[Input],
    output: PathLike,
    *,
    method: str,
    base: PathLike | None,
    base_name: str | None = None,
    retention: float = 0.9,
    evaluations: int = 40,
    strategy: Strategy = "auto",
    seed: int = 0,
    device: str = "cpu",
    prompt: str | None = None,
    batch_size: int = 32,
    cache: str | None = None,
    offline: bool = False,
    merge: Mapping[str, Any] | None = None,
    write: Mapping[str, Any] | None = None,
    complete: Complete | None = None,
    suites: tuple[Suite, Suite] | None = None,
) -> dict[str, Any]:
    """Find the merge that separates best among those that retain enough, and write it.

    The output is that of ``merge_checkpoints`` with the parameters that were found; besides, merge.json has the entry
    ``search``, and search.csv and search.png show every candidate and the front.

    Args:
        inputs: the checkpoints, as for ``merge_checkpoints``.
        output: the folder to write; it appears whole or not at all.
        method: a method told by ``t`` or by weights.
        base: the model that retention is measured against, and that task vectors are taken from.
        base_name: what ``load_embedder`` knows the base by, such as a name of BACKBONES; None: its folder.
        retention: the least retention of the result, in [0, 1].
        evaluations: how many candidates to score at most.
        strategy: ``auto``, ``grid``, ``greedy`` or ``evolve``; see ``merging.search.search``.
        seed: of the search, and of the random masks of methods that have them.
        device: where candidates are embedded and the result is merged.
        prompt: put before every text; None for the base's default prompt.
        batch_size: texts a forward pass.
        cache: the hub's cache folder, where ``base_name`` is a hub id.
        offline: read the cache only.
        merge: further arguments of ``merge_checkpoints`` that say what is merged and how, such as ``space``, ``norm`` and
            ``density``: they hold for candidates and result alike.
        write: further ones that say how it is carried out and written, such as ``memory``, ``threads`` and ``overwrite``.
        complete: as in ``merge_checkpoints``.
        suites: on what separation and retention are measured; None for ``selection`` and ``broad``.

    Returns:
        The content of merge.json.

    Raises:
        ValueError: what was asked is not possible, or no candidate reaches the floor; nothing has been written.
    """
    told, written = dict(merge or {}), dict(write or {})
    if given := [name for name in FOUND if told.get(name) is not None]:
        raise ValueError(f"--{given[0]}: expected it to be left to --search, got both; drop one of them")
    told = {name: value for name, value in told.items() if name not in FOUND}
    if base is None:
        raise ValueError("--search: expected the model that retention is measured against, got none; add --base")
    row = find_method(method)
    refuse_search(row, len(inputs), retention=retention, strategy=strategy, evaluations=evaluations)
    refuse_existing(output, overwrite=bool(written.get("overwrite")))
    options = {name: told[name] for name in OPTIONS if name in told}
    common = {name: value for name, value in told.items() if name not in options}
    measured = Measured.open(inputs, method=method, base=base, seed=seed, threads=written.get("threads"), **common)
    score = make_scorer(
        base_name or base,
        device=device,
        prompt=prompt,
        batch_size=batch_size,
        cache=cache,
        offline=offline,
        bidirectional=_reads_both_ways(inputs),
        **({} if suites is None else {"separation": suites[0], "retention": suites[1]}),
    )
    with _progress(evaluations, retention) as watch:
        candidates = search(
            measured,
            score,
            method=method,
            retention=retention,
            strategy=strategy,
            evaluations=evaluations,
            seed=seed,
            options=options,
            watch=watch,
        )
    reached = any(meets(candidate, retention) for candidate in candidates)
    record = SearchRecord(
        candidates=candidates,
        chosen=choose(candidates, retention) if reached else None,
        floor=retention,
        strategy=strategy,
        seed=seed,
        base=base_name or os.fspath(base),
        suite="broad" if suites is None else suites[1].name,
    )
    show_front(record)
    chosen = choose(candidates, retention)

    def add_files(folder: Path, plan: MergePlan) -> CardNotes | None:
        notes = complete(folder, plan) if complete is not None else None
        write_files(record, folder)
        return notes

    return merge_checkpoints(
        inputs,
        output,
        method=method,
        base=base,
        seed=seed,
        device=device,
        complete=add_files,
        extra={"search": entry_of(record)},
        **chosen.parameters.arguments(row),
        **told,
        **written,
    )


def _reads_both_ways(inputs: Sequence[Input]) -> bool:
    """Whether an input was trained without its causal mask: then the result is without it, and so are candidates."""
    folders = [Path(each) for one in inputs for each in (one if isinstance(one, tuple) else (one,))]
    return any(reads_both_ways(folder) for folder in folders if folder.is_dir())


@contextmanager
def _progress(evaluations: int, floor: float) -> Iterator[Watch]:
    """A bar on stderr with the best so far; yields what is called with every candidate."""
    columns = (
        TextColumn("searching"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=evaluations)
        best: Candidate | None = None

        def watch(candidate: Candidate) -> None:
            nonlocal best
            best = candidate if best is None else max(best, candidate, key=lambda each: rank(each, floor))
            shown = f"separation {best.separation:.4f}, retention {best.retention:.4f} at {best.parameters}"
            bar.update(task, advance=1, description=shown)

        yield watch
