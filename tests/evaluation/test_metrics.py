"""The metrics as torchmetrics: the functions' numbers, to the bit, on 1, 2 and 3 gloo ranks and under Lightning."""

import json
import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import distributed as dist
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchmetrics import MetricCollection

from evaluation import (
    cluster_agreement,
    clustering,
    kmeans_labels,
    linear_probe_accuracy,
    metrics,
    neighbour_accuracy,
    retention,
)
from evaluation.row_metric import RowMetric

SIZES = (24, 25, 100)
LABELLED = {
    "silhouette": (metrics.SilhouetteScore, {}, clustering.silhouette_score),
    "cosine": (metrics.SilhouetteScore, {"metric": "cosine"}, clustering.silhouette_score),
    "davies_bouldin": (metrics.DaviesBouldinScore, {}, clustering.davies_bouldin_score),
    "calinski_harabasz": (metrics.CalinskiHarabaszScore, {}, clustering.calinski_harabasz_score),
}
BLOCKED = {
    "neighbours": (metrics.NeighbourAccuracy, {"k": 3}, neighbour_accuracy),
    "probe": (metrics.LinearProbeAccuracy, {"folds": 3}, linear_probe_accuracy),
}
RETAINED = {
    "cka": (metrics.DebiasedCKA, {}, retention.debiased_cka),
    "rsa": (metrics.RSA, {}, retention.rsa),
    "knn": (metrics.KNNOverlap, {"k": 4}, retention.knn_overlap),
    "procrustes": (metrics.ProcrustesSimilarity, {}, retention.procrustes_similarity),
}


def texts(n):
    """Embeddings, labels, blocks of two texts, and base embeddings."""
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % 4
    centres = torch.randn(4, 6, generator=generator)
    base = torch.randn(n, 6, generator=generator) + centres[labels]
    embeddings = base @ torch.randn(6, 8, generator=generator) + torch.randn(n, 8, generator=generator)
    return embeddings, labels, torch.arange(n) // 8 * 4 + labels, base


def columns(name, data):
    """What a metric is updated with, by name of the argument."""
    embeddings, labels, blocks, base = data
    if name in RETAINED:
        return {"embeddings": embeddings, "base_embeddings": base}
    return {"embeddings": embeddings, "labels": labels} | ({"blocks": blocks} if name in BLOCKED else {})


def measured(name, data, rows, indexed):
    """One metric updated with the rows, five at a time, and computed over all ranks."""
    kind, settings, _ = (LABELLED | BLOCKED | RETAINED)[name]
    metric = kind(**settings)
    batches = torch.tensor(rows, dtype=torch.int64).split(5) if rows else ()
    for batch in batches:
        batch_columns = {key: column[batch] for key, column in columns(name, data).items()}
        metric.update(**batch_columns, indices=batch if indexed else None)
    value = metric.compute()
    assert (value.dtype, value.ndim) == (torch.float64, 0)
    return float(value).hex()


def on_one_rank(rank, ranks, folder):
    """What a rank sees: padded shares with indices, uneven shares without, and ranks without a row."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{ranks}", rank=rank, world_size=ranks)
    found = {}
    for n in SIZES:
        data = texts(n)
        sampler = DistributedSampler(range(n), num_replicas=ranks, rank=rank, seed=n)
        for name in (*LABELLED, *BLOCKED, *RETAINED):
            found[f"{name} {n} indexed"] = measured(name, data, list(sampler), indexed=True)
            found[f"{name} {n} plain"] = measured(name, data, list(range(rank, n, ranks)), indexed=False)
    found["silhouette 25 padded"] = measured("silhouette", texts(25), list(sampler_of(25, ranks, rank)), indexed=False)
    mine = list(range(24)) if rank == 0 else []
    found["silhouette 24 on rank 0"] = measured("silhouette", texts(24), mine, indexed=True)
    found["cka 24 on rank 0"] = measured("cka", texts(24), mine, indexed=False)
    halves = (texts(24)[0].bfloat16(), *texts(24)[1:])
    found["silhouette 24 halves"] = measured("silhouette", halves, list(range(rank, 24, ranks)), indexed=True)
    found["no rows"] = float(metrics.SilhouetteScore().compute()).hex()
    found["other width"] = refusal(metrics.SilhouetteScore(), texts(24)[0][:, : 4 + rank], texts(24)[1])
    (folder / f"{ranks}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def sampler_of(n, ranks, rank):
    return DistributedSampler(range(n), num_replicas=ranks, rank=rank, shuffle=False)


def refusal(metric, embeddings, labels):
    metric.update(embeddings, labels)
    try:
        metric.compute()
    except ValueError as error:
        return str(error)
    return ""


def test_one_two_and_three_ranks_give_identical_numbers(tmp_path):
    found = {}
    for ranks in (1, 2, 3):
        start_processes(on_one_rank, args=(ranks, tmp_path), nprocs=ranks, start_method="fork")
        seen = [json.loads((tmp_path / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
        assert all(one == seen[0] for one in seen), "ranks agree"
        found[ranks] = seen[0]
    refusals = [found[ranks].pop("other width") for ranks in (1, 2, 3)]
    assert refusals[0] == ""
    assert "one dtype and width on all ranks, got torch.float32 of width 4 and torch.float32 of width 5" in refusals[1]
    assert refusals[2].count("of width") == 3
    padded = [found[ranks].pop("silhouette 25 padded") for ranks in (1, 2, 3)]
    assert len(set(padded)) > 1, "copies raise the silhouette where no index tells them apart"
    assert found[1] == found[2] == found[3]
    assert found[1].pop("no rows") == "nan"
    assert all(math.isfinite(float.fromhex(value)) for value in found[1].values())
    for name, (_, settings, function) in (LABELLED | BLOCKED | RETAINED).items():
        for n in SIZES:
            expected = function(**columns(name, texts(n)), **settings)
            assert found[3][f"{name} {n} indexed"] == float(expected).hex()
            if name != "probe":  # whose folds depend on the order of the rows
                assert float.fromhex(found[3][f"{name} {n} plain"]) == pytest.approx(expected, rel=1e-12)


def test_updates_in_any_order_and_with_copies_are_the_whole_set():
    embeddings, labels, _, _ = texts(25)
    metric = metrics.SilhouetteScore()
    order = torch.cat([torch.randperm(25, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 3, 7])])
    for batch in order.split(6):
        metric.update(embeddings[batch], labels[batch], batch)
    expected = clustering.silhouette_score(embeddings, labels)
    assert float(metric.compute()) == expected
    metric.reset()
    metric.update(embeddings[:12], labels[:12], torch.arange(12))
    assert float(metric.compute()) == clustering.silhouette_score(embeddings[:12], labels[:12])


def test_without_indices_the_order_of_the_rows_decides_nothing():
    embeddings, labels, _, base = texts(25)
    embeddings[4] = embeddings[9]  # of another label: rows that embed alike need an order too
    values = set()
    for seed in range(4):
        order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))
        silhouette, cka = metrics.SilhouetteScore(), metrics.DebiasedCKA()
        silhouette.update(embeddings[order], labels[order])
        cka.update(embeddings[order].bfloat16(), base[order])
        values.add((float(silhouette.compute()), float(cka.compute())))
    assert len(values) == 1
    assert values.pop()[0] == pytest.approx(clustering.silhouette_score(embeddings, labels), rel=1e-12)


def test_agreement_of_kmeans_is_that_of_the_functions():
    embeddings, labels, _, _ = texts(24)
    expected = cluster_agreement(labels, kmeans_labels(embeddings, 4, seed=1))
    for measure in ("ari", "nmi", "ami"):
        metric = metrics.KMeansAgreement(measure=measure, seed=1)
        metric.update(embeddings, labels, torch.arange(24))
        assert float(metric.compute()) == expected[measure]


def test_texts_without_a_block_stand_alone():
    embeddings, labels, blocks, _ = texts(24)
    metric = metrics.NeighbourAccuracy()
    metric.update(embeddings[:16], labels[:16], torch.arange(16), blocks[:16])
    metric.update(embeddings[16:], labels[16:], torch.arange(16, 24))
    mixed = torch.cat([blocks[:16], 100 + torch.arange(8)])
    assert float(metric.compute()) == neighbour_accuracy(embeddings, labels, blocks=mixed)


def test_a_collection_shares_the_rows():
    embeddings, labels, blocks, _ = texts(24)
    kinds = [metrics.SilhouetteScore(), metrics.DaviesBouldinScore(), metrics.NeighbourAccuracy(k=2)]
    collection = MetricCollection(kinds)
    for half in torch.arange(24).split(12):
        collection.update(embeddings=embeddings[half], labels=labels[half], indices=half, blocks=blocks[half])
    assert {key: float(value) for key, value in collection.compute().items()} == {
        "SilhouetteScore": clustering.silhouette_score(embeddings, labels),
        "DaviesBouldinScore": clustering.davies_bouldin_score(embeddings, labels),
        "NeighbourAccuracy": neighbour_accuracy(embeddings, labels, blocks=blocks, k=2),
    }
    assert len(collection.compute_groups) == 2


class Validated(LightningModule):
    """Logs a metric object, as a user would."""

    def __init__(self):
        super().__init__()
        self.metric = metrics.SilhouetteScore()

    def validation_step(self, batch, _):
        embeddings, labels, indices = batch
        self.metric(embeddings, labels, indices)
        self.log("val/silhouette", self.metric)


def test_lightning_logs_it(tmp_path):
    embeddings, labels, _, _ = texts(25)
    batches = DataLoader(TensorDataset(embeddings, labels, torch.arange(25)), batch_size=10)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    module = Validated()
    (logged,) = trainer.validate(module, batches, verbose=False)
    assert logged["val/silhouette"] == clustering.silhouette_score(embeddings, labels)
    assert not module.metric.update_called, "Lightning resets it after each pass"


def test_what_is_better_is_said_right():
    kinds = [kind for kind in vars(metrics).values() if isinstance(kind, type) and issubclass(kind, RowMetric)]
    concrete = {kind: kind.higher_is_better for kind in kinds if not kind.__abstractmethods__}
    assert len(concrete) == 10
    assert [kind.__name__ for kind, better in concrete.items() if not better] == ["DaviesBouldinScore"]
    assert all(kind.is_differentiable is False and kind.full_state_update is False for kind in concrete)


def test_gradients_are_not_kept():
    embeddings, labels, _, _ = texts(24)
    metric = metrics.SilhouetteScore()
    value = metric(embeddings.requires_grad_(), labels)
    assert not value.requires_grad
    assert not metric.embeddings[0].requires_grad


@pytest.mark.parametrize(
    ("embeddings", "labels"),
    [(torch.rand(6, 3), [0] * 6), (torch.rand(6, 3), list(range(6))), (torch.ones(6, 3), [0, 1] * 3)],
    ids=["one label", "singletons", "constant"],
)
def test_what_is_undefined_is_nan(embeddings, labels):
    for kind in (
        metrics.SilhouetteScore,
        metrics.DaviesBouldinScore,
        metrics.NeighbourAccuracy,
        metrics.LinearProbeAccuracy,
    ):
        metric = kind()
        metric.update(embeddings, torch.tensor(labels))
        assert math.isnan(metric.compute())


def bad(**changes):
    embeddings, labels, blocks, _ = texts(24)
    good = {"embeddings": embeddings, "labels": labels, "indices": torch.arange(24), "blocks": blocks}
    return good | changes


BAD = {
    "non-finite": (bad(embeddings=torch.full((24, 8), math.nan)), "NaN or infinity in 24 of 24 rows"),
    "labels missing": (bad(labels=torch.arange(20)), "labels: expected 24, one for each row of the embeddings, got 20"),
    "a missing label": (bad(labels=torch.arange(24) - 1), "labels: expected numbers from 0, got 1 negative ones"),
    "another width": (
        bad(embeddings=torch.rand(24, 5)),
        "embeddings: expected the width of the updates before, 8, got 5",
    ),
    "another dtype": (
        bad(embeddings=torch.rand(24, 8).double()),
        "embeddings: expected the dtype of the updates before",
    ),
    "few indices": (bad(indices=torch.arange(23)), "indices: expected 24, one for each row of the embeddings, got 23"),
    "negative index": (bad(indices=torch.arange(24) - 2), "indices: expected numbers from 0, got 2 negative ones"),
    "few blocks": (bad(blocks=torch.arange(3)), "blocks: expected 24, one for each row of the embeddings, got 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_updates_are_refused_and_leave_the_state(case):
    arguments, message = BAD[case]
    metric = metrics.NeighbourAccuracy()
    metric.update(**bad())
    with pytest.raises(ValueError, match=message):
        metric.update(**arguments)
    assert float(metric.compute()) == neighbour_accuracy(*texts(24)[:2], blocks=texts(24)[2])


def test_indices_of_the_batch_instead_of_the_data_set_are_noticed():
    embeddings, labels, _, base = texts(24)
    silhouette, cka = metrics.SilhouetteScore(), metrics.DebiasedCKA()
    for batch in torch.arange(24).split(7):
        silhouette.update(embeddings[batch], labels[batch], torch.arange(len(batch)))
        cka.update(embeddings[batch], base[batch], torch.arange(len(batch)))
    for metric, name in ((silhouette, "embeddings"), (cka, "embeddings")):
        with pytest.raises(ValueError, match=f"indices: expected one index a text, got different {name} under index 0"):
            metric.compute()


def test_indices_in_some_updates_only_are_refused():
    embeddings, labels, _, _ = texts(24)
    metric = metrics.SilhouetteScore()
    metric.update(embeddings[:12], labels[:12])
    metric.update(embeddings[12:], labels[12:], torch.arange(12, 24))
    with pytest.raises(ValueError, match="expected them in every update or in none, got 12 of 24 rows with one"):
        metric.compute()


def test_settings_are_checked_when_the_metric_is_made():
    for make, message in (
        (lambda: metrics.SilhouetteScore(metric="manhattan"), "metric: expected"),
        (lambda: metrics.NeighbourAccuracy(k=0), "k: expected at least 1"),
        (lambda: metrics.KNNOverlap(k=0), "k: expected at least 1"),
        (lambda: metrics.LinearProbeAccuracy(folds=1), "folds: expected at least 2"),
        (lambda: metrics.KMeansAgreement(measure="purity"), "measure: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
