"""The suites of the evaluate command: built in or the user's own files, each under a name of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.labelled_text import check_trainable, read_labelled_text, suite_of
from data.lengths import LONGEST, SHORTEST, length_suite
from data.suites import SUITES, Suite, broad_suite, paper_suite, separated
from evaluation.mteb_writing import task_name
from evaluation.suite_report import Effort
from lightning_app.config import EvaluateConfig
from lightning_app.measurement import Measures

REPORTED = ("large", "held-out", "matched", "broad")


def measures_of(config: EvaluateConfig) -> Measures:
    """The suites asked for, with the separator asked for, and how much is spent on each.

    Raises:
        ValueError: a number out of its range, an unknown suite, a file that cannot be read; it names the flag.

    Example:
        >>> list(measures_of(EvaluateConfig(models=("tiny-llm",), suite=("large",))).suites)
        ['paper', 'broad', 'large']
    """
    if config.permutations < 2:
        raise ValueError(f"--permutations: expected 2 or more, got {config.permutations}; 1000 is a good number")
    if config.draws < 0 or config.draws == 1:
        raise ValueError(f"--draws: expected 0 (none), or 2 and more, got {config.draws}; 99 is a good number")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed: expected 0 to {2**32 - 1}, got {config.seed}; 0 is the default")
    if config.batch_size < 1:
        raise ValueError(f"--batch-size: expected 1 or more texts, got {config.batch_size}; 32 is the default")
    if wrong := [terms for terms in config.lengths if not SHORTEST <= terms <= LONGEST]:
        raise ValueError(f"--lengths: expected {SHORTEST} to {LONGEST} terms a text, got {wrong[0]}; 50 is the paper's")

    def written(suite: Suite) -> Suite:
        return suite if config.separator is None else separated(suite, config.separator)

    return Measures(
        paper=written(paper_suite()),
        broad=written(broad_suite()),
        reported={name: suite if own else written(suite) for name, (suite, own) in _suites(config).items()},
        lengths=[written(length_suite(terms)) for terms in sorted(set(config.lengths))],
        effort=Effort(permutations=config.permutations, draws=config.draws),
        seed=config.seed,
    )


def _suites(config: EvaluateConfig) -> Mapping[str, tuple[Suite, bool]]:
    """The suites asked for, built in or (True) from a file; ``paper`` is always measured."""
    found: dict[str, tuple[Suite, bool]] = {}
    for name in config.suite:
        if name == "selection":
            raise ValueError(
                "--suite selection: this suite chooses epochs and merges, so it is never reported; take large"
            )
        if name == "paper":
            continue
        if name in REPORTED:
            found[name] = (SUITES[name](), False)
        elif Path(name).suffix in (".jsonl", ".csv"):
            stem = Path(name).stem
            _check_suite_name(name, stem, [*SUITES, *found])
            data = read_labelled_text(name)
            check_trainable(data)
            found[stem] = (suite_of(data, stem), True)
        else:
            raise ValueError(f"--suite: expected paper, {', '.join(REPORTED)}, or a .jsonl or .csv file, got {name!r}")
    return found


def _check_suite_name(file: str, stem: str, taken: Sequence[str]) -> None:
    """In the report a suite is a key, with ``_reason`` after it where it is undefined, and in MTEB's shape a task."""
    if alike := [other for other in taken if task_name(other) == task_name(stem)]:
        raise ValueError(
            f"--suite {file}: expected a file name of its own, got {stem!r} for a second suite beside {alike[0]!r}; "
            "rename the file"
        )
    if stem.endswith("_reason"):
        raise ValueError(
            f"--suite {file}: expected a file name without the ending '_reason', got {stem!r}; rename the file"
        )
