"""score(tensors) -> (separation, retention): one embedder, two suites, and the weights of one candidate after another.

Separation is measured on the ``selection`` suite, which is never reported.  Retention is measured on ``broad``, where reports
show it too: in a search it is a floor, not what is made large.  A run gives both suites itself: its own selection suite twice,
so that nothing of what it reports has chosen anything.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from torch import Tensor

from data.suites import Suite, broad_suite, selection_suite
from evaluation.clustering import silhouette_score
from evaluation.retention import debiased_cka
from lightning_app.candidate_prefix import CandidatePrefix
from lightning_app.places import find_places, load_tensors
from merging.search import Score
from merging.sources import open_model
from models.embedder import base_folder, check_finite_weights, check_lengths, encode, load_embedder


def make_scorer(
    base: str | PathLike[str],
    *,
    device: str = "cpu",
    prompt: str | None = None,
    batch_size: int = 32,
    cache: str | None = None,
    offline: bool = False,
    bidirectional: bool = False,
    separation: Suite | None = None,
    retention: Suite | None = None,
) -> Score:
    """Load the base once, embed the suite of retention with it, and return the function that scores candidates.

    The function writes a candidate's tensors into the one embedder, so it holds a single model however many
    are scored; it is not for several threads. Blocks below the lowest in which a candidate is not the base are computed
    once for all candidates.

    Args:
        base: the model that retention is measured against, as for ``load_embedder``; candidates have its tensors.
        device: where to embed.
        prompt: put before every text; None for the model's default prompt.
        batch_size: texts a forward pass.
        cache: the hub's cache folder.
        offline: read the cache only.
        bidirectional: embed candidates and base without the causal mask, as candidates were trained.
        separation: the suite whose silhouette is the first number; None for ``selection``.
        retention: the suite whose debiased CKA is the second; None for ``broad``.

    Returns:
        ``score(tensors)``: the silhouette of the one suite and the debiased CKA of the other against the base;
        nan where undefined (all embeddings coincide).  It raises ValueError for tensors that do not fit, by name.

    Raises:
        ValueError: the base cannot be loaded, its weights are not finite, it truncates a text, or its files do not hold its
            weights under names that can be followed.
    """
    named = base if isinstance(base, str) else Path(base)
    folder = base_folder(named, cache=cache, offline=offline)
    embedder = load_embedder(named, device=device, cache=cache, offline=offline, bidirectional=bidirectional)
    check_finite_weights(embedder, source=str(base))
    separated_on, retained_on = separation or selection_suite(), retention or broad_suite()
    for suite in (separated_on, retained_on):
        check_lengths(embedder, suite.texts, source=f"{base}, suite {suite.name}", prompt=prompt)
    places = find_places(embedder, open_model(folder))
    base_embeddings = encode(embedder, retained_on.texts, batch_size=batch_size, prompt=prompt)

    prefix = CandidatePrefix(embedder, places, separated_on.texts[:3])

    def score(tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        prefix.suit(tensors)
        load_tensors(places, tensors)
        separated = retained = encode(embedder, separated_on.texts, batch_size=batch_size, prompt=prompt)
        if retained_on.texts != separated_on.texts:
            retained = encode(embedder, retained_on.texts, batch_size=batch_size, prompt=prompt)
        return silhouette_score(separated, separated_on.labels), debiased_cka(retained, base_embeddings)

    return score
