"""Every benchmark, or some parts: ``python -m benchmarks [PART ...]`` writes results.json and README.md.

Parts that are not run keep what an earlier run found.  mergekit is installed into an environment of its own when
a part first needs it.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import (
    evaluation_metrics,
    in_process,
    merge_commands,
    merge_sizes,
    mergekit_agreement,
    training_speed,
)
from benchmarks.readme import page
from benchmarks.result import Result, Settings, read_results, write_results
from storage.atomic import write_text

HERE = Path(__file__).parent
QUICK_OUTPUT = HERE.parent / "runs" / "benchmarks"

PARTS: Mapping[str, Callable[[Settings], list[Result]]] = {
    in_process.PART: in_process.measure,
    evaluation_metrics.PART: evaluation_metrics.measure,
    merge_commands.PART: merge_commands.measure,
    merge_sizes.PART: merge_sizes.measure,
    mergekit_agreement.PART: mergekit_agreement.measure,
    training_speed.PART: training_speed.measure,
}
NEED_MERGEKIT = (merge_commands.PART, mergekit_agreement.PART)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse flags, run the parts, and write both files after each."""
    parser = _parser()
    told = parser.parse_args(arguments)
    if unknown := [part for part in told.parts if part not in PARTS]:
        parser.error(f"PART: expected some of {', '.join(PARTS)}, got {', '.join(unknown)}; leave it out for all")
    if told.repeats is not None and told.repeats < 1:
        parser.error(f"--repeats: expected 1 or more, got {told.repeats}; leave it out for 5")
    output = told.output or (QUICK_OUTPUT if told.quick else HERE)
    if told.quick and output.resolve() == HERE:
        parser.error(f"--output: expected another folder than {HERE} with --quick, got it; leave --output out")
    chosen = told.parts or [part for part in PARTS if not (told.quick and part in NEED_MERGEKIT)]
    output.mkdir(parents=True, exist_ok=True)
    repeats = told.repeats or (1 if told.quick else 5)
    for part in (part for part in PARTS if part in chosen):
        try:
            _run(part, output, told.scratch, repeats=repeats, quick=told.quick)
        except ValueError as error:
            parser.error(str(error))
    return 0


def _run(part: str, output: Path, scratch: Path | None, *, repeats: int, quick: bool) -> None:
    """Run one part in a folder of its own and write both files."""
    file = output / "results.json"
    kept = [result for result in read_results(file) if result.part != part]
    print(f"{part}:", flush=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        found = PARTS[part](Settings(scratch=Path(folder), repeats=repeats, quick=quick))
    results = [result for name in PARTS for result in [*kept, *found] if result.part == name]
    write_results(file, results)
    write_text(output / "README.md", page(results, output, quick=quick))
    for result in found:
        ratio = "" if result.ratio is None else f", ratio {result.ratio:.3g}"
        goals = "".join(f"; {check.what} {check.value:.3g} of {check.goal:g}" for check in result.checks)
        print(f"  {result.name}: {result.ours:.3f} {result.unit}, peer {result.peer:.3f}{ratio}{goals}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--output", type=Path, help="folder of both files (default: benchmarks/)")
    parser.add_argument("--scratch", type=Path, help="folder for checkpoints, up to 17 GB (default: the system's)")
    parser.add_argument("--repeats", type=int, help="counted runs of each side (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once, without mergekit, into runs/benchmarks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
