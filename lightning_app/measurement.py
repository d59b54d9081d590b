"""One model -> one row of the report: embed every suite, then call the functions of evaluation/."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from data.suites import Suite, broad_suite, paper_suite
from evaluation.clustering import clustering_report
from evaluation.retention import retention_report
from storage.atomic import write_bytes

Encode = Callable[[Sequence[str]], Float[Tensor, "n d"]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's row, and its embeddings by suite, (n, d) each."""

    row: dict[str, Any]
    embeddings: Mapping[str, Tensor]


def measure(
    encode: Encode,
    *,
    name: str,
    family: str,
    prompt: str | None,
    suites: Mapping[str, Suite],
    base: Measured | None,
    seed: int,
    note: str | None = None,
) -> Measured:
    """Measure one model on the paper's suite, on ``suites``, and against ``base`` on the broad suite.

    Args:
        encode: Texts -> embeddings.
        name, family, prompt, note: For the row.
        suites: The reported suites beside the paper's.
        base: The base model's measurement; None: no retention; the base itself is measured first and compared with itself.
        seed: Of KMeans and the permutations.
    """
    paper, broad = paper_suite(), broad_suite()
    embeddings = {suite.name: encode(suite.texts) for suite in (paper, broad, *suites.values())}
    row: dict[str, Any] = {"name": name, "family": family, "source": "measured", "prompt": prompt}
    row |= clustering_report(embeddings["paper"], paper.labels, seed=seed)
    row["suites"] = {
        key: clustering_report(embeddings[suite.name], suite.labels, seed=seed) for key, suite in suites.items()
    }
    if base is None and family != "base":
        row["retention"], row["retention_reason"] = None, "no base was given"
    else:
        reference = embeddings if base is None else base.embeddings
        row["retention"] = retention_report(embeddings["broad"], reference["broad"])
    if note is not None:
        row["note"] = note
    return Measured(row=row, embeddings=embeddings)


def draw_projection(measured: Measured, path: Any, *, seed: int) -> None:
    """Write the t-SNE picture of the paper's suite to ``path``, a PNG file."""
    # matplotlib takes a second to import; a run that only trains never pays for it
    from evaluation.projection import figure_png, projection_figure

    suite = paper_suite()
    labels = [suite.families[label] for label in suite.labels]
    title = f"{measured.row['name']}: the paper's 24 sequences"
    write_bytes(path, figure_png(projection_figure(measured.embeddings["paper"], labels, title, seed=seed)))
