"""Whole merges, folder to folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging import merge_checkpoints, merge_state_dicts
from storage.json_file import read_json
from storage.manifest import fingerprint, verify_manifest, write_manifest
from storage.tensor_file import read_header, read_tensors
from tests.merging.conftest import MakeModel, perturbed

METHODS = ("linear", "slerp", "karcher")


def weights_of(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "model.safetensors")


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].dtype == expected[name].dtype
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_files_and_memory_give_the_same_bits(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path, method: str, with_base: bool
) -> None:
    states = [perturbed(tiny, 0.1, seed) for seed in (1, 2)]
    folders = [make_model(f"in{index}", state) for index, state in enumerate(states)]
    base = make_model("base", tiny) if with_base else None
    report = merge_checkpoints(folders, tmp_path / "out", method=method, base=base)
    expected = merge_state_dicts(states, method=method, base=tiny if with_base else None)
    assert_same(weights_of(tmp_path / "out"), expected)
    assert report == read_json(tmp_path / "out" / "merge.json")
    assert report["space"] == ("task_vector" if with_base else "weight")
    assert verify_manifest(tmp_path / "out")["kind"] == "merge"


def test_the_byte_budget_and_the_shards_do_not_change_a_bit(
    make_model: MakeModel, make_sharded: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("merging.pieces.CHUNK", 12)
    items = list(perturbed(tiny, 0.1, 1).items())
    whole, shards = make_model("whole", dict(items)), make_sharded("shards", [dict(items[:2]), dict(items[2:])])
    base = make_model("base", tiny)
    adapter = make_adapter("adapter", base)
    merge_checkpoints([whole, adapter], tmp_path / "a", method="karcher")
    merge_checkpoints([whole, adapter], tmp_path / "b", method="karcher", memory=1)
    merge_checkpoints([shards, adapter], tmp_path / "c", method="karcher", memory=100)
    assert_same(weights_of(tmp_path / "b"), weights_of(tmp_path / "a"))
    assert_same(weights_of(tmp_path / "c"), weights_of(tmp_path / "a"))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_itself_is_that_model_byte_for_byte(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path, method: str
) -> None:
    a, b = make_model("a", tiny), make_model("b", tiny)
    report = merge_checkpoints([a, b], tmp_path / "out", method=method)
    assert_same(weights_of(tmp_path / "out"), tiny)
    assert report["summary"]["copied_unchanged"] == report["summary"]["tensors"] == len(tiny)
    for name, entry in read_header(tmp_path / "out" / "model.safetensors").entries.items():
        before = read_header(a / "model.safetensors").entries[name]
        out_bytes = (tmp_path / "out" / "model.safetensors").read_bytes()[entry.begin : entry.end]
        assert out_bytes == (a / "model.safetensors").read_bytes()[before.begin : before.end]


def test_tensors_that_all_inputs_share_are_copied_and_the_rest_is_merged(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    other = tiny | {"norm.weight": tiny["norm.weight"] + 1}
    report = merge_checkpoints([make_model("a", tiny), make_model("b", other)], tmp_path / "out", method="slerp")
    states = {name: row["state"] for name, row in report["tensors"].items()}
    assert [name for name, state in states.items() if state == "merged"] == ["norm.weight"]
    assert torch.equal(weights_of(tmp_path / "out")["embeddings.weight"], tiny["embeddings.weight"])


def test_the_folder_carries_the_companions_of_the_base(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    folders = []
    for seed, name in enumerate("ab", start=1):
        dense = {"linear.weight": torch.eye(2) * seed}
        folders.append(make_model(name, perturbed(tiny, 0.1, seed), dense=dense, sub="0_Transformer"))
    base = make_model("base", tiny, dense={"linear.weight": torch.zeros(2, 2)}, sub="0_Transformer")
    (folders[0] / "README.md").write_text("old")
    merge_checkpoints(folders, tmp_path / "out", method="linear", base=base)
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {
        *("0_Transformer/config.json", "0_Transformer/model.safetensors", "2_Dense/config.json"),
        *("2_Dense/model.safetensors", "merge.json", "manifest.json", "modules.json", "tokenizer.json", "README.md"),
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# out" in card
    assert "old" not in card.split()
    assert read_json(tmp_path / "out" / "tokenizer.json") == {"of": "base"}
    assert torch.equal(weights_of(tmp_path / "out" / "2_Dense")["linear.weight"], torch.eye(2) * 1.5)
    merge_checkpoints(folders, tmp_path / "no-base", method="linear")
    assert read_json(tmp_path / "no-base" / "tokenizer.json") == {"of": "a"}


def test_slerp_from_a_base_to_an_adapter_runs_in_weight_space_from_the_base(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = make_model("base", tiny)
    adapter = make_adapter("adapter", base)
    ends = {}
    for t in (0, 1):
        for name, inputs in (("forward", [base, adapter]), ("back", [adapter, base])):
            report = merge_checkpoints(inputs, tmp_path / f"{name}{t}", method="slerp", base=base, t=t)
            assert report["space"] == "weight"
            ends[name, t] = weights_of(tmp_path / f"{name}{t}")
    assert_same(ends["forward", 0], tiny)
    assert_same(ends["back", 0], tiny)
    assert_same(ends["forward", 1], ends["back", 1])
    with pytest.raises(ValueError, match="base among them"):
        merge_checkpoints([base, adapter], tmp_path / "x", method="slerp", base=base, space="task_vector")
    copy = make_model("copy", tiny)
    with pytest.raises(ValueError, match="base among them"):
        merge_checkpoints([copy, adapter], tmp_path / "x", method="slerp", base=base, space="task_vector")


def test_an_adapter_with_itself_folds_as_one(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = make_model("base", {name: x.bfloat16() if x.is_floating_point() else x for name, x in tiny.items()})
    first, twin = make_adapter("a", base), make_adapter("b", base)
    merge_checkpoints([first, twin], tmp_path / "out", method="karcher")
    merge_checkpoints([first, base], tmp_path / "end", method="linear", base=base, t=1)
    assert_same(weights_of(tmp_path / "out"), weights_of(tmp_path / "end"))
    assert weights_of(tmp_path / "out")["norm.weight"].dtype == torch.bfloat16


def test_the_report_says_what_was_merged_and_how_far_it_is_from_the_soup(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = make_model("base", tiny)
    adapters = [make_adapter(f"stage{seed}", base, seed=seed) for seed in (1, 2)]
    report = merge_checkpoints(adapters, tmp_path / "mean", method="karcher")
    merge_checkpoints(adapters, tmp_path / "soup", method="linear")
    assert [entry["kind"] for entry in report["inputs"]] == ["adapter", "adapter"]
    assert report["inputs"][0]["base"] == {"path": str(base), "fingerprint": fingerprint(base)}
    assert list(report["inputs"][0]["sha256"]) == ["adapter_model.safetensors"]
    mean, soup = weights_of(tmp_path / "mean"), weights_of(tmp_path / "soup")
    gap = torch.cat([(mean[name] - soup[name]).flatten().double() for name in tiny])
    update = torch.cat([(soup[name] - tiny[name]).flatten().double() for name in tiny])
    summary = report["summary"]
    assert summary["distance_to_soup"] == pytest.approx(float(gap.norm() / update.norm()), rel=1e-4)
    assert summary["soup_norm"] == pytest.approx(float(update.norm()), rel=1e-4)
    assert summary["distance_to_linear"] == summary["distance_to_soup"] > 0.1
    assert summary["largest_angle_degrees"] >= summary["mean_angle_degrees"] > 0
    assert summary["copied_unchanged"] == len(tiny) - 2


def test_distances_in_weight_space_are_relative_to_the_soup(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    states = [perturbed(tiny, 0.3, seed) for seed in (1, 2)]
    folders = [make_model(f"in{index}", state) for index, state in enumerate(states)]
    summary = merge_checkpoints(folders, tmp_path / "slerp", method="slerp", t=0.2)["summary"]
    merge_checkpoints(folders, tmp_path / "soup", method="linear")
    merge_checkpoints(folders, tmp_path / "linear", method="linear", t=0.2)
    got, soup, linear = (weights_of(tmp_path / name) for name in ("slerp", "soup", "linear"))
    floats = [name for name, tensor in tiny.items() if tensor.is_floating_point()]
    norm = torch.cat([soup[name].flatten().double() for name in floats]).norm()
    for key, other in (("distance_to_soup", soup), ("distance_to_linear", linear)):
        gap = torch.cat([(got[name] - other[name]).flatten().double() for name in floats]).norm()
        assert summary[key] == pytest.approx(float(gap / norm), rel=1e-3)


def test_progress_counts_every_byte(make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    inputs = [make_model("a", tiny), make_model("b", perturbed(tiny, 0.1, 1))]
    merge_checkpoints(
        inputs, tmp_path / "out", method="linear", progress=lambda done, total: calls.append((done, total))
    )
    size = sum(tensor.nbytes for tensor in tiny.values())
    assert calls[-1] == (size, size)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_a_merge_that_fails_half_way_leaves_nothing(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    a = make_model("a", tiny)
    opposite = make_model("b", tiny | {"norm.weight": -tiny["norm.weight"]})
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"tensor norm\.weight: .*antipodal"):
        merge_checkpoints([a, opposite], tmp_path / "out", method="slerp")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_tensor_file_and_count(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path, bad: float
) -> None:
    from safetensors.torch import save_file

    a, b = make_model("a", tiny), make_model("b", tiny)
    spoiled = tiny["norm.weight"].clone()
    spoiled[1:4] = bad
    save_file(tiny | {"norm.weight": spoiled}, b / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"b/model\.safetensors: tensor norm\.weight: .*got 3 that are NaN or infinite"
    ):
        merge_checkpoints([a, b], tmp_path / "out", method="linear")
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from merging import merge_checkpoints
kill = lambda done, total: os.kill(os.getpid(), signal.SIGKILL)
merge_checkpoints(sys.argv[1:3], sys.argv[3], method="linear", overwrite=True, progress=kill)
"""


def test_a_killed_merge_leaves_the_old_folder_and_the_next_merge_clears_up(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    a, b, out = make_model("a", tiny), make_model("b", perturbed(tiny, 0.1, 1)), tmp_path / "out"
    merge_checkpoints([a, a], out, method="linear")
    command = [sys.executable, "-c", KILLED, str(a), str(b), str(out)]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.returncode == -signal.SIGKILL
    verify_manifest(out)
    assert_same(weights_of(out), tiny)
    assert len(list(tmp_path.glob(".out.building-*"))) == 1
    merge_checkpoints([a, b], out, method="linear", overwrite=True)
    verify_manifest(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_a_stage_with_another_base_is_refused_by_fingerprint(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base, other = make_model("base", tiny), make_model("other", perturbed(tiny, 0.1, 1))
    stages = [make_adapter(f"stage{seed}", base, seed=seed) for seed in (1, 2)]
    for stage in stages:
        write_manifest(stage, base={"name": "base", "fingerprint": fingerprint(base)})
    merge_checkpoints(stages, tmp_path / "out", method="linear")
    with pytest.raises(ValueError, match=r"stage1: expected the base with fingerprint .*--base"):
        merge_checkpoints(stages, tmp_path / "x", method="linear", base=other)
