"""score(tensors) -> (separation, retention): one embedder, two suites, and the weights of one candidate after another.

Separation is measured on the ``selection`` suite, which is never reported.  Retention is measured on ``broad``, where reports
show it too: in a search it is a floor, not what is made large.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from torch import Tensor

from data.suites import broad_suite, selection_suite
from evaluation.clustering import silhouette_score
from evaluation.retention import debiased_cka
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
) -> Score:
    """Load the base once, embed the broad suite with it, and return the function that scores candidates.

    The function writes a candidate's tensors into the one embedder, so it holds a single model however many
    are scored; it is not for several threads.

    Args:
        base: the model that retention is measured against, as for ``load_embedder``; candidates have its tensors.
        device: where to embed.
        prompt: put before every text; None for the model's default prompt.
        batch_size: texts a forward pass.
        cache: the hub's cache folder.
        offline: read the cache only.
        bidirectional: embed candidates and base without the causal mask, as candidates were trained.

    Returns:
        ``score(tensors)``: the silhouette of the selection suite and the debiased CKA of the broad suite against the base;
        nan where undefined (all embeddings coincide).  It raises ValueError for tensors that do not fit, by name.

    Raises:
        ValueError: the base cannot be loaded, its weights are not finite, it truncates a text, or its files do not hold its
            weights under names that can be followed.
    """
    named = base if isinstance(base, str) else Path(base)
    folder = base_folder(named, cache=cache, offline=offline)
    embedder = load_embedder(named, device=device, cache=cache, offline=offline, bidirectional=bidirectional)
    check_finite_weights(embedder, source=str(base))
    selection, broad = selection_suite(), broad_suite()
    for suite in (selection, broad):
        check_lengths(embedder, suite.texts, source=f"{base}, suite {suite.name}", prompt=prompt)
    places = find_places(embedder, open_model(folder))
    base_embeddings = encode(embedder, broad.texts, batch_size=batch_size, prompt=prompt)

    def score(tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        load_tensors(places, tensors)
        separated = encode(embedder, selection.texts, batch_size=batch_size, prompt=prompt)
        retained = encode(embedder, broad.texts, batch_size=batch_size, prompt=prompt)
        return silhouette_score(separated, selection.labels), debiased_cka(retained, base_embeddings)

    return score
