"""A run with --adapt-top: trained, measured and merged over states that are computed once, as without them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from data.suites import paper_suite
from lightning_app import fitting, prefix, preparation
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.fitting import fit_stage
from lightning_app.prefix import open_prefix, share_prefix
from lightning_app.preparation import Run, prepare
from lightning_app.stages import RunData, read_run_data
from models.adapter import adapter_state, transformer_of
from models.embedder import encode, load_embedder
from models.export import save_embedder
from models.lora import block_stack
from models.prefix_cache import PrefixCache
from models.prefix_store import FileStore
from models.tiny_llm import build_tiny_llm
from storage.tensor_file import read_tensors, write_tensors

STAGE = StageConfig(name="six", families=("six",), epochs=2, steps_per_epoch=3, learning_rate=1e-2)
WHOLE = read_run_data(TrainConfig(stages=(STAGE,), merges=())).stages[0]


@pytest.fixture(autouse=True)
def no_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths of the texts are not looked at, which takes the time of all the rest."""
    monkeypatch.setattr(preparation, "check_lengths", lambda *_, **__: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    embedder = build_tiny_llm(hidden_size=16, layers=3, heads=2, intermediate_size=24, seed=3)
    return save_embedder(embedder, tmp_path_factory.mktemp("models") / "three")


def prepared(base: Path, folder: Path, **settings: Any) -> Run:
    lora = settings.pop("lora", LoraConfig(r=2))
    chosen = {"adapt_top": 1, "merges": (), "stages": (STAGE,), **settings}
    config = TrainConfig(backbone=str(base), lora=lora, output=str(folder), **chosen)
    folder.mkdir(exist_ok=True)
    if base.name == "tiny-encoder":
        return prepare(config, read_run_data(config))
    found = {}
    for place, label in enumerate(WHOLE.data.labels):
        found.setdefault(label, []).append(place)
    places = [place for each in list(found.values())[:3] for place in each[:: len(each) // 3][:3]]
    stage = replace(WHOLE, data=WHOLE.data.part(places), classes=3, per_class=2)
    return prepare(config, RunData(stages=(stage,), selection=None, reported=None))


class Passes(Callback):
    """Counts passes through the lowest block while batches are trained on."""

    def __init__(self) -> None:
        self.count = 0
        self.training = False

    def watch(self, run: Run) -> Any:
        lowest = block_stack(transformer_of(run.embedder))[1][0]
        return lowest.mlp.up_proj.register_forward_hook(lambda *_: setattr(self, "count", self.count + self.training))

    def on_train_batch_start(self, *_: Any) -> None:
        self.training = True

    def on_train_batch_end(self, *_: Any) -> None:
        self.training = False


def trained(
    run: Run, folder: Path, *, cached: bool = True, name: str = "six", prefix: PrefixCache | None = None
) -> tuple[dict[str, torch.Tensor], int]:
    """The adapter after a stage, and passes through the lowest block in its steps."""
    passes = Passes()
    handle = passes.watch(run)
    if cached:
        run.prefix = prefix or open_prefix(run, folder)
        assert run.prefix is not None
    fit_stage(run, run.data.stages[0], folder / "stages" / name, folder=folder, suites={}, observers=[passes])
    handle.remove()
    return {name: tensor.clone() for name, tensor in adapter_state(run.embedder).items()}, passes.count


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"token_budget": 200, "gradient_checkpointing": True},
        {"lora": LoraConfig(r=2, dropout=0.2, use_dora=True), "batching": "padded", "num_workers": 1},
        {"precision": "bf16-mixed"},
    ],
    ids=["plain", "computed-again", "dora-worker", "mixed"],
)
def test_a_stage_is_trained_as_without_and_its_steps_compute_nothing_below(
    settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    wanted, passes = trained(prepared(base, tmp_path / "plain", **settings), tmp_path / "plain", cached=False)
    assert passes > 0
    run = prepared(base, tmp_path / "run", **settings)
    found, passes = trained(run, tmp_path / "run")
    assert passes <= 9, "each of the 9 texts at most once"
    assert trained(run, tmp_path / "again", prefix=run.prefix)[1] == 0
    moved = max(tensor.abs().max() for name, tensor in wanted.items() if "lora_B" in name)
    assert moved > 1e-3
    within = 3e-2 if settings.get("precision") == "bf16-mixed" else 2e-5
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=within, msg=lambda m, n=name: f"{n}: {m}")


def test_a_second_run_of_the_same_folder_computes_nothing_again(base: Path, tmp_path: Path) -> None:
    found, _ = trained(prepared(base, tmp_path / "run"), tmp_path / "run")
    (file,) = (tmp_path / "run" / "prefix").iterdir()
    run = prepared(base, tmp_path / "run")
    before = encode(run.embedder, paper_suite().texts)
    run.prefix = open_prefix(run, tmp_path / "run")
    torch.testing.assert_close(run.encode(paper_suite().texts), before, rtol=0, atol=1e-6)
    size = file.stat().st_size
    again, passes = trained(run, tmp_path / "run", name="again")
    assert passes == 0
    assert all(torch.equal(again[name], tensor) for name, tensor in found.items())
    assert file.stat().st_size == size


def test_a_merge_reads_the_states_of_the_run(base: Path, tmp_path: Path) -> None:
    run = prepared(base, tmp_path / "run")
    run.prefix = open_prefix(run, tmp_path / "run")
    texts = paper_suite().texts
    run.encode(texts)
    tensors = read_tensors(base / "model.safetensors")
    merged = load_embedder(base)
    target = save_embedder(merged, tmp_path / "merged")
    changed = {name: tensor * 1.3 if "layers.2.mlp" in name else tensor for name, tensor in tensors.items()}
    write_tensors(target / "model.safetensors", changed, {"format": "pt"})
    merged = load_embedder(target)
    wanted = encode(merged, texts)
    (file,) = (tmp_path / "run" / "prefix").iterdir()
    size = file.stat().st_size
    shared = share_prefix(run, merged, tmp_path / "run")
    assert shared is not None
    assert isinstance(shared.store, FileStore)
    assert len(shared.store) >= len(texts)
    torch.testing.assert_close(run.encode(texts, merged), wanted, rtol=0, atol=1e-6)
    assert file.stat().st_size == size
    assert list((tmp_path / "run" / "prefix").iterdir()) == [file]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adapt_top": None}, None),
        ({"prefix_cache": False}, None),
        ({"adapt_top": 3}, None),
        (
            {"strategy": "fsdp", "devices": 2},
            "prefix cache: not used, with --strategy fsdp every device holds a part of each block only",
        ),
        ({"precision": "bf16-true"}, "prefix cache: not used, --precision bf16-true changes the weights for training"),
    ],
)
def test_runs_without_one(
    settings: dict[str, Any], said: str | None, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(prefix, "announce", told.append)
    run = prepared(base, tmp_path / "run", **settings)
    assert open_prefix(run, tmp_path / "run") is None
    assert told == ([] if said is None else [said])
    assert not (tmp_path / "run" / "prefix").exists()


def test_a_model_from_scratch_has_none(tmp_path: Path) -> None:
    run = prepared(Path("tiny-encoder"), tmp_path / "run", adapt_top=None, prefix_cache=True)
    assert open_prefix(run, tmp_path / "run") is None


def test_two_ranks_keep_a_share_each_and_train_as_one(base: Path, tmp_path: Path) -> None:
    found, files = [], []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        run = prepared(base, folder, devices=devices, strategy="ddp_fork" if devices > 1 else "auto", accelerator="cpu")
        found.append(trained(run, folder)[0] if devices == 1 else forked(run, folder))
        files.append(sorted((folder / "prefix").iterdir()))
    assert [len(each) for each in files] == [1, 2]
    one, two = found
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def forked(run: Run, folder: Path) -> dict[str, torch.Tensor]:
    run.prefix = open_prefix(run, folder)
    assert run.prefix is not None
    before = len(run.prefix.store)
    fit_stage(run, run.data.stages[0], folder / "stages" / "six", folder=folder, suites={})
    assert len(run.prefix.store) > before, "the parent knows what the ranks have kept"
    return dict(read_tensors(folder / "stages" / "six" / "adapter_model.safetensors"))


def test_blocks_below_have_no_dropout_with_adapt_top_alone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[bool]] = []
    run = prepared(base, tmp_path / "run", prefix_cache=False)
    stack = block_stack(transformer_of(run.embedder))[1]
    monkeypatch.setattr(fitting, "fit", lambda *_, **__: seen.append([block.training for block in stack]))
    fit_stage(run, run.data.stages[0], tmp_path / "run" / "stages" / "six", folder=tmp_path / "run", suites={})
    assert seen == [[False, False, True]]
