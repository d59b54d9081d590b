"""What a run minimises, put together from its settings; and that keeping the base's geometry keeps it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from data.pairs import Pair, Pairs, pair_rows
from data.training_texts import TrainingTexts
from evaluation.retention import debiased_cka
from lightning_app import preparation
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.fitting import fit_stage
from lightning_app.objective import objective
from lightning_app.preparation import prepare
from lightning_app.stages import read_run_data
from models.embedder import encode, load_embedder
from models.gram_distance import gram_distance
from models.info_nce import info_nce_loss
from models.lora import add_lora
from models.losses import supervised_contrastive_loss
from storage.tensor_file import read_tensors
from tests.conftest import short_texts
from tests.lightning_app.test_ranks import Gradients

TEXTS = short_texts()


@pytest.fixture
def embedder(tiny_folder: Path) -> Any:
    found = load_embedder(tiny_folder)
    add_lora(found, r=2, alpha=4, targets=["q_proj", "down_proj"])
    return found


def batch(data: TrainingTexts, places: list[int]) -> Tensor:
    items = data.items()
    return torch.tensor([(items[i].label, items[i].place, items[i].role) for i in places])


def random(n: int, d: int = 32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n))


def test_by_label_is_the_supervised_contrastive_loss(embedder: Any) -> None:
    loss = objective(TrainConfig(temperature=0.3), TEXTS, embedder)
    targets, z = batch(TEXTS, [0, 1, 12, 13, 24]), random(5)
    assert torch.equal(loss(z, targets), supervised_contrastive_loss(z, targets[:, 0], temperature=0.3))


def test_two_texts_of_a_label_are_a_pair_in_both_directions_and_any_order(embedder: Any) -> None:
    loss = objective(TrainConfig(objective="infonce", temperature=0.3), TEXTS, embedder)
    places, z = [5, 0, 13, 12, 30, 25], random(6)
    labels, roles = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1, 0, 1, 0, 1, 0])
    expected = info_nce_loss(z, labels, roles, temperature=0.3, symmetric=True)
    torch.testing.assert_close(loss(z, batch(TEXTS, places)), expected)
    order = torch.tensor([4, 2, 0, 1, 5, 3])
    torch.testing.assert_close(loss(z[order], batch(TEXTS, [places[i] for i in order])), expected)


def test_pairs_have_roles_and_their_common_texts_are_no_negatives(embedder: Any) -> None:
    given = (Pair("1, 2", "3, 4", ("5, 6",)), Pair("1, 2", "7, 8", ("3, 4",)), Pair("9, 9", "8, 8", ("1, 2",)))
    data = pair_rows(Pairs(source="p.jsonl", pairs=given, groups=(0, 0, 1)))
    targets, z = batch(data, list(range(9))), random(9)
    expected = info_nce_loss(z, targets[:, 0], targets[:, 2], texts=torch.tensor([0, 1, 2, 0, 4, 1, 6, 7, 0]))
    ours = objective(TrainConfig(objective="infonce"), data, embedder)(z, targets)
    assert torch.equal(ours, expected)
    assert not torch.isclose(ours, info_nce_loss(z, targets[:, 0], targets[:, 2]))


def test_a_pair_outside_the_batch_is_known_too(embedder: Any) -> None:
    """Of the batch a-p, c-q, d-r the text q is no negative of a, as the data has the pair a-q."""
    given = (Pair("1", "2"), Pair("1", "4"), Pair("3", "4"), Pair("5", "6"))
    data = pair_rows(Pairs(source="p.jsonl", pairs=given, groups=(0, 0, 0, 1)))
    z = random(6)
    ours = objective(TrainConfig(objective="infonce"), data, embedder)(z, batch(data, [0, 1, 4, 5, 6, 7]))
    unit = torch.nn.functional.normalize(z, dim=1)
    similarity = unit[::2] @ unit[1::2].T / 0.1
    similarity[0, 1] = -torch.inf
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(similarity, torch.arange(3)))


def test_lengths_and_geometry_are_added_up(embedder: Any, tiny_folder: Path) -> None:
    """The base's rows are found by the targets' places, also where a text is there twice."""
    twice = TrainingTexts(texts=[*TEXTS.texts[:20], *TEXTS.texts[:5]], labels=[0] * 10 + [1] * 15, blocks=range(25))
    settings = TrainConfig(matryoshka=(4, 16), geometry_weight=0.7, temperature=0.2)
    places, z = [2, 22, 12, 19, 7], random(5)
    labels = torch.tensor([twice.labels[i] for i in places])
    lengths = [supervised_contrastive_loss(z[:, :m], labels, temperature=0.2) for m in (4, 16, 32)]
    base = encode(load_embedder(tiny_folder), [twice.texts[i] for i in places])
    expected = sum(lengths) / 3 + 0.7 * gram_distance(z, base)
    ours = objective(settings, twice, embedder)(z, batch(twice, places))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_what_the_model_does_not_have_is_refused(embedder: Any, tiny_folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--matryoshka: expected numbers below the model's dimension 32 .*got 16 32; drop 32"
    ):
        objective(TrainConfig(matryoshka=(16, 32)), TEXTS, embedder)
    with pytest.raises(ValueError, match=r"--geometry-weight 0\.5: expected an adapter .* trained from scratch"):
        objective(TrainConfig(geometry_weight=0.5), TEXTS, load_embedder(tiny_folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "tiny-encoder", "geometry_weight": 1.0}, "--geometry-weight 1.0: expected an adapter on a base"),
        (
            {"backbone": "all-minilm", "matryoshka": (384,)},
            "--matryoshka: expected numbers below the model's dimension 384",
        ),
    ],
)
def test_a_model_of_the_table_is_refused_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(preparation, "load_embedder", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(preparation, "base_folder", lambda *_, **__: pytest.fail("looked for"))
    config = TrainConfig(**settings)
    with pytest.raises(ValueError, match=message):
        prepare(config, read_run_data(config))


def trained(tiny_folder: Path, folder: Path, data: Path, *observers: Callback, steps: int = 12, **settings: Any) -> Any:
    stage = StageConfig(name="own", epochs=1, steps_per_epoch=steps, learning_rate=1e-2, classes=4)
    config = TrainConfig(
        backbone=str(tiny_folder),
        data=str(data),
        stages=(stage,),
        lora=LoraConfig(r=4),
        merges=(),
        output=str(folder),
        **settings,
    )
    run = prepare(config, read_run_data(config))
    fit_stage(run, run.data.stages[0], folder / "stages" / "1-own", folder=folder, suites={}, observers=observers)
    return run


@pytest.fixture
def pair_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Windows of four sequences: a pair is two of one sequence, the negative one of another. The first two pairs share a text."""
    monkeypatch.setattr(preparation, "check_lengths", lambda *_, **__: None)
    file, texts = tmp_path / "pairs.jsonl", TEXTS.texts
    rows = [
        {"anchor": texts[i], "positive": texts[i + 1], "negative": texts[(i + 14) % 48]}
        for i in [0, 1, *range(4, 47, 3)]
    ]
    rows[1]["anchor"] = rows[0]["anchor"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_geometry_term_keeps_the_base(tiny_folder: Path, tmp_path: Path, pair_file: Path) -> None:
    """Same pairs, same steps, by the run's own parts: with the term, more of the base is left."""
    probes = TEXTS.texts[::2]
    base = encode(load_embedder(tiny_folder), probes)
    left = {}
    for weight in (0.0, 30.0):
        run = trained(
            tiny_folder,
            tmp_path / str(weight),
            pair_file,
            objective="infonce",
            matryoshka=(8, 16),
            geometry_weight=weight,
        )
        embeddings = encode(run.embedder, probes)
        assert (embeddings - base).abs().max() > 1e-3
        left[weight] = (debiased_cka(embeddings, base), float(gram_distance(embeddings, base)))
    assert left[30.0][0] > left[0.0][0] + 0.02
    assert left[30.0][1] < left[0.0][1] / 2


def test_two_ranks_have_the_gradient_of_one(tiny_folder: Path, tmp_path: Path, pair_file: Path) -> None:
    """Anchors, positives and negatives of all ranks are candidates, and each rank knows the base of every text."""
    found = []
    for devices in (1, 2):
        file = tmp_path / f"{devices}.safetensors"
        ranks = {"devices": 2, "strategy": "ddp_fork", "accelerator": "cpu"} if devices == 2 else {}
        trained(
            tiny_folder,
            tmp_path / str(devices),
            pair_file,
            Gradients(file),
            steps=2,
            objective="infonce",
            matryoshka=(8,),
            geometry_weight=5.0,
            **ranks,
        )
        found.append(read_tensors(file))
    one, two = found
    assert one.keys() == two.keys()
    assert max(gradient.abs().max() for gradient in one.values()) > 1e-3
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-5, rtol=0)
