"""Scores of candidates that share states, against scores of the whole pass."""

import pytest
import torch

from lightning_app import candidate_prefix
from lightning_app.candidate_prefix import CandidatePrefix
from lightning_app.scoring import make_scorer
from models.export import save_embedder
from models.tiny_llm import build_tiny_llm
from storage.tensor_file import read_tensors


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    embedder = build_tiny_llm(hidden_size=16, layers=4, heads=2, intermediate_size=24, seed=3)
    return save_embedder(embedder, tmp_path_factory.mktemp("models") / "four")


@pytest.fixture
def layers(monkeypatch):
    """The layer of the cache at every candidate."""
    found, suit = [], CandidatePrefix.suit

    def noted(self, tensors):
        suit(self, tensors)
        found.append(self.layer if self._cache is not None else None)

    monkeypatch.setattr(CandidatePrefix, "suit", noted)
    return found


def candidate(base, touched, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator) if touched in name else tensor
        for name, tensor in read_tensors(base / "model.safetensors").items()
    }


def whole(base, tensors, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CandidatePrefix, "suit", lambda *_: None)
        return make_scorer(base)(tensors)


def test_scores_are_those_of_the_whole_pass_wherever_candidates_differ(base, small_suites, layers, monkeypatch):
    wanted_layers = []
    score = make_scorer(base)
    for touched, layer in (
        ("no tensor", None),
        ("layers.3.", 3),
        ("no tensor", 3),
        ("layers.2.mlp", 2),
        ("layers.3.", 2),
        ("layers.1.self_attn.k_proj", 1),
        ("layers.2.", 1),
        ("embed_tokens", None),
        ("layers.3.", None),
    ):
        tensors = candidate(base, touched, seed=len(wanted_layers))
        wanted_layers.append(layer)
        assert score(tensors) == pytest.approx(whole(base, tensors, monkeypatch), abs=1e-6), touched
        assert layers == wanted_layers, touched


def test_a_search_in_the_top_block_computes_the_others_once(base, small_suites, monkeypatch):
    caches = []
    monkeypatch.setattr(candidate_prefix, "PrefixCache", lambda *args: caches.append(original(*args)) or caches[-1])
    score = make_scorer(base)
    for seed in range(3):
        score(candidate(base, "layers.3.", seed))
    (cache,) = caches
    texts = {text for suite in small_suites for text in suite.texts}
    assert len(cache.store) == len(texts)


original = candidate_prefix.PrefixCache


def test_tensors_that_do_not_fit_are_refused_by_name_as_ever(base, small_suites):
    score = make_scorer(base)
    score(candidate(base, "layers.3."))
    tensors = candidate(base, "layers.3.")
    del tensors["layers.0.mlp.up_proj.weight"]
    with pytest.raises(
        ValueError, match=r"tensor layers\.0\.mlp\.up_proj\.weight: expected it as in the base, got none"
    ):
        score(tensors)
