"""One model -> one row of the report: embed every suite, then call the functions of evaluation/."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from data.suites import Suite, with_nuisance
from evaluation.clustering import clustering_report
from evaluation.geometry import geometry_report
from evaluation.report_schema import PAPER_COLUMNS
from evaluation.retention import retention_report
from evaluation.suite_report import Effort, chance_report, interval_report, jackknife_report, suite_report

Encode = Callable[[Sequence[str]], Float[Tensor, "n d"]]
CountTokens = Callable[[Sequence[str]], Sequence[int]]

PAPER_WINDOWS = 4
"""Windows a family in the paper's suite: the size of the fresh suites behind its interval."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured of every model."""

    paper: Suite
    """The suite of the first columns."""
    broad: Suite
    """Where geometry is compared with the base's."""
    reported: Mapping[str, Suite]
    """Further suites, by the name that the report gives them."""
    lengths: Sequence[Suite] = ()
    """The six families in windows of several lengths, shortest first."""
    effort: Effort = field(default_factory=Effort)
    """How much is spent on saying what chance gives."""
    seed: int = 0
    """Of KMeans, the permutations, the folds and the cuts."""

    @property
    def suites(self) -> dict[str, Suite]:
        """All that a model must be able to read, by name; of ``lengths`` it may fail to."""
        return {suite.name: suite for suite in (self.paper, self.broad, *self.reported.values())}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's row, and its embeddings by suite, (n, d) each; a model that failed has none."""

    row: dict[str, Any]
    embeddings: Mapping[str, Tensor]


def measure(
    encode: Encode,
    *,
    name: str,
    family: str,
    prompt: str | None,
    measures: Measures,
    base: Measured | None,
    count_tokens: CountTokens | None = None,
    note: str | None = None,
) -> Measured:
    """Measure one model on every suite, and against ``base`` on the broad one.

    Args:
        encode: Texts -> embeddings.
        name, family, prompt, note: For the row.
        measures: The suites, and how much to spend.
        base: The base model's measurement; None: no retention; the base itself is measured first and compared with itself.
        count_tokens: Texts -> tokens of each, a property that clusters may follow.

    Raises:
        ValueError: embeddings that are not finite, or a text that the model would cut.
    """
    embeddings = {name: encode(suite.texts) for name, suite in measures.suites.items()}
    row: dict[str, Any] = {"name": name, "family": family, "source": "measured", "prompt": prompt}
    row["dimensions"] = int(embeddings[measures.paper.name].shape[1])
    row |= _separation(embeddings, measures, count_tokens)
    broad = embeddings[measures.broad.name]
    if base is None and family != "base":
        row["retention"], row["retention_reason"] = None, "no base was given"
    else:
        row["retention"] = retention_report(broad, broad if base is None else base.embeddings[measures.broad.name])
    row["geometry"] = geometry_report(broad, measures.broad.labels)
    if measures.lengths:
        row["lengths"] = [_length(encode, suite, measures) for suite in measures.lengths]
    if note is not None:
        row["note"] = note
    return Measured(row=row, embeddings=embeddings)


def _separation(
    embeddings: Mapping[str, Tensor], measures: Measures, count_tokens: CountTokens | None
) -> dict[str, Any]:
    """The columns of the paper's suite, and ``suites``."""
    paper, seed, effort = measures.paper, measures.seed, measures.effort
    ours = embeddings[paper.name]
    found = _suite(ours, paper, measures, count_tokens)
    found |= chance_report(ours, len(set(paper.labels)), effort=effort, seed=seed)
    found |= jackknife_report(ours, paper.labels, paper.blocks)
    if (large := measures.reported.get("large")) is None:
        found |= {"interval": None, "interval_reason": "needs fresh windows: the suite large"}
    elif found["silhouette_true"] is None:
        found |= {"interval": None, "interval_reason": found["silhouette_true_reason"]}
    else:
        found |= interval_report(
            embeddings[large.name],
            large.labels,
            large.blocks,
            observed=found["silhouette_true"],
            per_label=PAPER_WINDOWS,
            seed=seed,
        )
    found["suites"] = {
        key: _suite(embeddings[suite.name], suite, measures, count_tokens)
        | interval_report(embeddings[suite.name], suite.labels, suite.blocks, seed=seed)
        for key, suite in measures.reported.items()
    }
    return found


def _suite(
    embeddings: Float[Tensor, "n d"], suite: Suite, measures: Measures, count_tokens: CountTokens | None
) -> dict[str, Any]:
    if count_tokens is not None:
        suite = with_nuisance(suite, "tokens", [float(count) for count in count_tokens(suite.texts)])
    return suite_report(
        embeddings,
        suite.labels,
        families=suite.families,
        blocks=suite.blocks,
        nuisances=suite.nuisances,
        seed=measures.seed,
        permutations=measures.effort.permutations,
    )


def _length(encode: Encode, suite: Suite, measures: Measures) -> dict[str, Any]:
    """One point of the effect of length; a length that the model cannot read says so."""
    terms = int(suite.nuisances["terms"][0])
    try:
        embeddings = encode(suite.texts)
    except ValueError as error:
        return {"terms": terms, "silhouette_true": None, "silhouette_true_reason": str(error)}
    report = clustering_report(embeddings, suite.labels, seed=measures.seed, permutations=measures.effort.permutations)
    return {"terms": terms} | {key: report[key] for key in report if "kmeans" not in key}


def failed_row(name: str, family: str, reason: str) -> dict[str, Any]:
    """The row of a model that could not be measured: every number is None, for one reason."""
    row: dict[str, Any] = {"name": name, "family": family, "source": "measured", "prompt": None, "error": reason}
    for key in PAPER_COLUMNS:
        row |= {key: None, f"{key}_reason": reason}
    for key in ("null", "retention"):
        row |= {key: None, f"{key}_reason": reason}
    return row | {"suites": {}}


def measured_baseline(name: str, encode: Encode, *, meaning: str, measures: Measures) -> Measured:
    """A baseline's row: the paper's suite and the reported ones, on which it is undefined where a text has no numbers."""
    embeddings: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    for suite in (measures.paper, *measures.reported.values()):
        try:
            embeddings[suite.name] = encode(suite.texts)
        except ValueError as error:
            missing[suite.name] = str(error)
    readable = {key: suite for key, suite in measures.reported.items() if suite.name in embeddings}
    row: dict[str, Any] = {"name": name, "family": "baseline", "source": "measured", "prompt": None}
    row["dimensions"] = int(embeddings[measures.paper.name].shape[1])
    row |= _separation(embeddings, _only(measures, readable), None)
    for key, suite in measures.reported.items():
        if suite.name in missing:
            row["suites"] |= {key: None, f"{key}_reason": missing[suite.name]}
    row |= {"retention": None, "retention_reason": "a baseline is no model", "note": meaning}
    return Measured(row=row, embeddings=embeddings)


def _only(measures: Measures, reported: Mapping[str, Suite]) -> Measures:
    effort = Effort(permutations=measures.effort.permutations, draws=0, kmeans_seeds=0)
    return Measures(paper=measures.paper, broad=measures.broad, reported=reported, effort=effort, seed=measures.seed)
