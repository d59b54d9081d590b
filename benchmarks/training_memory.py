"""By how much a process grows at most while it trains some steps, apart from the model and the libraries.

    python -m benchmarks.training_memory ours decoder-16 96 4 32-true 8 2 1

prints the bytes and the seconds: the side, the model, tokens of the longest text, the layers with LoRA from the top (0: all), the
precision, texts a label, steps and threads.  Each is measured
in a process of its own, after a tiny model has been trained in it, so that what imports took once is not counted.
"""

import contextlib
import io
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.memory_growth import measured
from benchmarks.training_case import TrainingCase, fresh
from benchmarks.training_runs import SIDES, plan_of


def training_growth(side: str, case: TrainingCase, *, per_class: int, steps: int) -> int:
    """Bytes of one side in a fresh process, with as many threads as this one has.

    Raises:
        RuntimeError: the process failed; the message ends with what it wrote to stderr.
    """
    words = [side, *words_of(case), per_class, steps, torch.get_num_threads()]
    command = [sys.executable, "-m", __name__, *map(str, words)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-2])


def words_of(case: TrainingCase) -> list[str]:
    """The case as `main` reads it.

    >>> words_of(TrainingCase(model="decoder-16", adapt_top=4))
    ['decoder-16', '96', '4', '32-true']
    """
    return [case.model, str(case.longest), str(case.adapt_top or 0), case.precision]


def case_of(words: Sequence[str]) -> TrainingCase:
    """The case of `words_of`; its texts are the uneven ones.

    >>> case_of(words_of(TrainingCase(model="tiny", adapt_top=1, longest=64))).name
    'tiny, LoRA on the top 1, 36% filled'
    """
    model, longest, top, precision = words
    assert precision in ("32-true", "bf16-mixed")
    return TrainingCase(model=model, longest=int(longest), adapt_top=int(top) or None, precision=precision)


def main(arguments: Sequence[str]) -> int:
    """Train the tiny model, then measure one run."""
    side, case = SIDES[arguments[0]], case_of(arguments[1:5])
    per_class, steps, threads = map(int, arguments[5:])
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        tiny = TrainingCase(model="tiny")
        side(fresh(tiny), plan_of(tiny, per_class=2, steps=2), Path(folder) / "tiny")
        embedder, plan = fresh(case), plan_of(case, per_class=per_class, steps=steps)
        grown, seconds = measured(lambda: side(embedder, plan, Path(folder) / "run"))
    print(grown, seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
