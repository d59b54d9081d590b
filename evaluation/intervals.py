"""How far a score would move with other windows of the same sequences.

There is no bootstrap here: a window drawn twice is at distance 0 from itself, which turns a silhouette of -0.09 into
+0.11. Every interval below comes from disjoint sets of distinct windows.

Dimension names:
    n: windows
    d: embedding width
    r: parts
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from evaluation.centring import Embeddings, checked
from evaluation.clustering import silhouette_score
from evaluation.codes import block_codes
from evaluation.labels import Labels, label_codes
from evaluation.reasons import null_for_nan

Statistic = Callable[[Float[Tensor, "_n _d"], Sequence[Hashable]], float]
"""A number of embeddings and labels, such as `silhouette_score`; nan where undefined."""

FEWEST, MOST = 3, 12
"""Parts: with two of them the interval is 13 standard deviations wide; pairs of parts are left out, so not too many."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval, or the reason why there is none."""

    low: float
    """Lower end; nan, like all numbers here, where ``reason`` is set."""
    high: float
    """Upper end."""
    sd: float
    """Standard error of the value in the middle: that of a suite of this size over draws of its windows."""
    level: float
    """Share of such intervals that cover the expected value."""
    replicates: int
    """Disjoint parts that the windows were cut into; one less are the degrees of freedom."""
    per_label: int
    """Windows of each label in a part."""
    reason: str | None = None
    """Why there is no interval; None when there is one."""


def fresh_window_interval(
    embeddings: Embeddings,
    labels: Labels,
    *,
    blocks: Labels | None = None,
    per_label: int,
    statistic: Statistic = silhouette_score,
    observed: float | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """What a score would be expected to be with other windows, from windows cut into disjoint parts at random.

    Two questions, two uses:

    - ``observed`` is the score of *another* suite, with ``per_label`` windows a label (the paper's 24 texts have 4). The
      windows given here are cut into as many suites of that size as they hold, and the interval is observed +- t sd,
      where sd is the standard deviation of the statistic over these suites. It covers the expected score of a suite of
      that size, as far as its windows vary like the ones given: that the suite lies elsewhere in the sequences, as the
      paper's first windows do, is no part of it.
    - ``observed`` is None: the interval is that of the statistic on the windows given, all of them. They are cut into
      parts of about ``per_label`` windows a label (at most 12), each part and each pair of parts is left out once, and
      the jackknife's variance loses half of Efron and Stein's correction. For clusters that hardly separate the plain
      jackknife is too wide (99 % coverage) and the fully corrected one, whose correction is itself an estimate, too
      narrow (91 %); with half of it and nine parts 95 % of simulated suites of six labels are covered, whatever their
      separation, and 92 to 98 % with 2 or 15 labels, few or many dimensions.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, integers or strings.
        blocks: where each window was cut from; windows of one block stay together. None: each stands for itself.
        per_label: windows of each label in a part, at least 2.
        statistic: a function of embeddings and labels.
        observed: the score of an independent suite, or None.
        seed: of the cut.
        level: between 0 and 1.

    Returns:
        An `Interval`; all nan, with ``reason``, where whole blocks do not give 3 parts, and where the statistic is
        undefined on the whole or on a part.

    Raises:
        ValueError: per_label below 2, a level outside 0..1, embeddings that are not a finite matrix, or labels or blocks
            that do not match them.

    Reference:
        Efron & Stein, "The jackknife estimate of variance", 1981.

    Example:
        >>> x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + torch.eye(4)[[0, 1] * 30]
        >>> interval = fresh_window_interval(x, [0, 1] * 30, per_label=5)
        >>> interval.low < silhouette_score(x, [0, 1] * 30) < interval.high, interval.replicates
        (True, 6)
    """
    if per_label < 2:
        raise ValueError(f"per_label: expected at least 2 windows a label, got {per_label}; 4 is the paper's number")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, got {level}; 0.95 is usual")
    windows = _Windows.of(embeddings, labels, blocks, statistic)
    parts = windows.suites(per_label, seed) if observed is not None else windows.parts(per_label, seed)
    if len(parts) < FEWEST:
        why = f"whole blocks give {len(parts)} disjoint parts of {per_label} windows a label, needs {FEWEST}"
        return _no_interval(why, level, len(parts), per_label)
    if observed is not None:
        scores = torch.tensor([windows.score(part) for part in parts], dtype=torch.float64)
        middle, sd = observed, float(scores.std())
    else:
        middle, sd = windows.score(range(len(windows.labels))), math.sqrt(_corrected_jackknife(windows, parts))
    if math.isnan(middle) or math.isnan(sd):
        where = "suite" if math.isnan(middle) else "a part of it"
        return _no_interval(f"the score of the {where} is undefined", level, len(parts), per_label)
    reach = float(student.ppf((1 + level) / 2, len(parts) - 1)) * sd
    return Interval(
        low=middle - reach, high=middle + reach, sd=sd, level=level, replicates=len(parts), per_label=per_label
    )


def jackknife_spread(
    embeddings: Embeddings, labels: Labels, *, blocks: Labels | None = None, statistic: Statistic = silhouette_score
) -> dict[str, Any]:
    """How much one suite's score hangs on single blocks: each is left out once. A spread, not an interval.

    It says nothing of other windows when there are few: silhouettes of four windows a label depend on which three are
    left. For an interval see `fresh_window_interval`.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, integers or strings.
        blocks: where each text was cut from; those of one block are left out together. None: each stands for itself.
        statistic: a function of embeddings and labels.

    Returns:
        ``sd``: the jackknife's standard error; ``low``, ``high``: the lowest and highest score with one block left out;
        ``deleted``: how many blocks were. Undefined, None with ``<key>_reason`` beside it, where a label has one block
        only and where the statistic is undefined without some block.

    Raises:
        ValueError: embeddings that are not a finite matrix, or labels or blocks that do not match them.

    Reference:
        Quenouille, "Notes on bias in estimation", 1956; Tukey, "Bias and confidence in not-quite large samples", 1958.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
        >>> spread = jackknife_spread(x, [0, 0, 0, 1, 1, 1])
        >>> spread["low"] <= silhouette_score(x, [0, 0, 0, 1, 1, 1]) <= spread["high"], spread["deleted"]
        (True, 6)
    """
    windows = _Windows.of(embeddings, labels, blocks, statistic)
    groups = list(windows.blocks.values())
    fewest = min(windows.blocks_of_label().values())
    if fewest < 2:
        values, reason = dict.fromkeys(("sd", "low", "high"), math.nan), "a label has one block only"
    else:
        scores = torch.tensor([windows.score_without(group) for group in groups], dtype=torch.float64)
        values = {"sd": math.sqrt(_jackknife(scores)), "low": float(scores.min()), "high": float(scores.max())}
        reason = "the score is undefined without one of the blocks"
    return null_for_nan(values, reason) | {"deleted": len(groups)}


@dataclass(frozen=True)
class _Windows:
    """Checked embeddings with their labels, the rows of each block, and the statistic."""

    embeddings: Tensor
    labels: list[int]
    blocks: dict[int, list[int]]
    statistic: Statistic

    @classmethod
    def of(cls, embeddings: Embeddings, labels: Labels, blocks: Labels | None, statistic: Statistic) -> "_Windows":
        rows = checked(embeddings)
        codes, _ = label_codes(labels, rows.shape[0])
        members: dict[int, list[int]] = {}
        for row, block in enumerate(block_codes(blocks, rows.shape[0]).tolist()):
            members.setdefault(block, []).append(row)
        return cls(rows, codes.tolist(), members, statistic)

    def score(self, rows: Sequence[int]) -> float:
        return self.statistic(self.embeddings[list(rows)], [self.labels[row] for row in rows])

    def score_without(self, rows: Sequence[int]) -> float:
        gone = set(rows)
        return self.score([row for row in range(len(self.labels)) if row not in gone])

    def blocks_of_label(self) -> Counter[int]:
        return Counter(label for rows in self.blocks.values() for label in {self.labels[row] for row in rows})

    def shuffled_blocks(self, seed: int) -> list[list[int]]:
        order = torch.randperm(len(self.blocks), generator=torch.Generator().manual_seed(seed)).tolist()
        blocks = list(self.blocks.values())
        return [blocks[at] for at in order]

    def suites(self, per_label: int, seed: int) -> list[list[int]]:
        """Disjoint suites of exactly ``per_label`` windows a label, of whole blocks; the rest is left over."""
        left, found = self.shuffled_blocks(seed), []
        for _ in range(min(Counter(self.labels).values()) // per_label):
            suite, passed, room = [], [], Counter(dict.fromkeys(self.labels, per_label))
            for block in left:
                needed = Counter(self.labels[row] for row in block)
                if needed <= room:
                    room -= needed
                    suite += block
                else:
                    passed.append(block)
            left = passed
            if not room:
                found.append(sorted(suite))
        return found

    def parts(self, per_label: int, seed: int) -> list[list[int]]:
        """All windows, in parts of about ``per_label`` windows a label, of whole blocks: each goes where its labels are
        fewest."""
        size = min(Counter(self.labels).values()) // per_label
        parts: list[list[int]] = [[] for _ in range(min(size, MOST, min(self.blocks_of_label().values())))]
        held: list[Counter[int]] = [Counter() for _ in parts]
        for block in self.shuffled_blocks(seed) if parts else []:
            at = min(range(len(parts)), key=lambda part: (sum(held[part][self.labels[row]] for row in block), part))
            parts[at] += block
            held[at].update(self.labels[row] for row in block)
        return parts


def _jackknife(scores: Float[Tensor, " r"]) -> float:
    """Variance of a statistic from its values without each part."""
    return float((scores - scores.mean()).square().sum()) * (len(scores) - 1) / len(scores)


def _corrected_jackknife(windows: _Windows, parts: list[list[int]]) -> float:
    """The jackknife's variance, less half of its quadratic excess (Efron & Stein, section 5).

    The excess is at most half of the variance for a statistic that is quadratic in the windows: no more is taken off.
    """
    r = len(parts)
    whole = windows.score(range(len(windows.labels)))
    without = [windows.score_without(part) for part in parts]
    interactions = torch.tensor(
        [
            r * whole - (r - 1) * (without[i] + without[j]) + (r - 2) * windows.score_without(parts[i] + parts[j])
            for i, j in combinations(range(r), 2)
        ],
        dtype=torch.float64,
    )
    excess = float((interactions - interactions.mean()).square().sum()) / (r * (r - 1))
    variance = _jackknife(torch.tensor(without, dtype=torch.float64))
    return max(variance - excess / 2, variance / 2)


def _no_interval(reason: str, level: float, replicates: int, per_label: int) -> Interval:
    nan = math.nan
    return Interval(low=nan, high=nan, sd=nan, level=level, replicates=replicates, per_label=per_label, reason=reason)
