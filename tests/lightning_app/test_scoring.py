"""The score of a candidate, against the same numbers by other ways: the library's loading, scikit-learn, HSIC as loops."""

import itertools
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import silhouette_score as sklearn_silhouette

from data.suites import broad_suite, selection_suite
from lightning_app import scoring
from lightning_app.scoring import make_scorer
from models.embedder import encode, load_embedder
from storage.tensor_file import read_tensors, write_tensors
from tests.lightning_app.conftest import part_of


def debiased_cka_by_loops(x, y):
    """Song et al.'s unbiased HSIC as a sum over ordered pairs, triples and quadruples of different rows."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    n = len(x)

    def hsic(a, b):
        pairs = np.mean([a[i, j] * b[i, j] for i, j in itertools.permutations(range(n), 2)])
        triples = np.mean([a[i, j] * b[i, k] for i, j, k in itertools.permutations(range(n), 3)])
        fours = np.mean([a[i, j] * b[k, m] for i, j, k, m in itertools.permutations(range(n), 4)])
        return pairs - 2 * triples + fours

    return hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))


def test_a_score_is_the_silhouette_and_the_alignment_of_that_model(tiny_folder, tmp_path, small_suites):
    selection, broad = small_suites
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in read_tensors(tiny_folder / "model.safetensors").items()
    }
    write_tensors(other / "model.safetensors", tensors, {"format": "pt"})
    separation, retention = make_scorer(tiny_folder)(tensors)
    base, embedder = load_embedder(tiny_folder), load_embedder(other)
    wanted = sklearn_silhouette(encode(embedder, selection.texts).numpy(), selection.labels)
    assert separation == pytest.approx(wanted, abs=1e-5)
    x, y = (encode(each, broad.texts).double().numpy() for each in (embedder, base))
    assert retention == pytest.approx(debiased_cka_by_loops(x, y), abs=1e-6)
    assert 0.1 < retention < 0.999


def test_the_base_keeps_everything_whatever_was_scored_before(tiny_folder, small_suites):
    score = make_scorer(tiny_folder)
    base = read_tensors(tiny_folder / "model.safetensors")
    first = score(base)
    score({name: tensor * 1.5 + 0.1 for name, tensor in base.items()})
    assert score(base) == first
    assert first[1] == pytest.approx(1, abs=1e-9)


def test_the_suite_that_is_reported_as_separation_is_not_the_one_that_chooses(tiny_folder, monkeypatch):
    read = []
    monkeypatch.setattr(scoring, "encode", lambda embedder, texts, **_: read.append(texts) or torch.rand(len(texts), 4))
    score = make_scorer(tiny_folder)
    score(read_tensors(tiny_folder / "model.safetensors"))
    assert read == [broad_suite().texts, selection_suite().texts, broad_suite().texts]


def test_a_prompt_changes_the_score(tiny_folder, small_suites):
    tensors = read_tensors(tiny_folder / "model.safetensors")
    assert make_scorer(tiny_folder)(tensors) != make_scorer(tiny_folder, prompt="9, 9, ")(tensors)


def test_a_collapsed_candidate_has_no_score(tiny_folder, small_suites):
    tensors = read_tensors(tiny_folder / "model.safetensors")
    tensors["norm.weight"] = torch.zeros_like(tensors["norm.weight"])
    assert all(math.isnan(number) for number in make_scorer(tiny_folder)(tensors))


def test_a_model_that_would_cut_the_texts_is_refused(make_mistral, tmp_path, small_suites):
    folder = make_mistral(tmp_path / "short", max_tokens=64)
    with pytest.raises(ValueError, match="suite selection: expected texts of at most 64 tokens"):
        make_scorer(folder)


def test_a_base_with_nan_is_refused_by_name(tiny_folder, tmp_path):
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["norm.weight"][3] = math.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"broken: expected finite weights, got NaN or infinity in .*norm\.weight"):
        make_scorer(broken)


def test_candidates_without_a_causal_mask_are_embedded_without_it(tiny_folder, small_suites):
    selection, _ = small_suites
    tensors = read_tensors(tiny_folder / "model.safetensors")
    separation, retention = make_scorer(tiny_folder, bidirectional=True)(tensors)
    embedder = load_embedder(tiny_folder, bidirectional=True)
    wanted = sklearn_silhouette(encode(embedder, selection.texts).numpy(), selection.labels)
    assert separation == pytest.approx(wanted, abs=1e-5)
    assert separation != pytest.approx(make_scorer(tiny_folder)(tensors)[0], abs=1e-4)
    assert retention == pytest.approx(1, abs=1e-9)


def test_suites_of_a_run_take_the_place_of_the_built_in_ones(tiny_folder, small_suites):
    """Retention on the suite that separation is measured on: nothing that is reported is embedded."""
    own = part_of(selection_suite(), 12)
    tensors = read_tensors(tiny_folder / "model.safetensors")
    separation, retention = make_scorer(tiny_folder, separation=own, retention=own)(tensors)
    wanted = sklearn_silhouette(encode(load_embedder(tiny_folder), own.texts).numpy(), own.labels)
    assert separation == pytest.approx(wanted, abs=1e-5)
    assert retention == pytest.approx(1, abs=1e-9)
    assert separation != pytest.approx(make_scorer(tiny_folder)(tensors)[0], abs=1e-3)
