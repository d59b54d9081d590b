"""Everything that is refused before a byte is written."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from merging import merge_checkpoints
from merging.plan import MergePlan, plan_merge
from merging.request import Request
from merging.schedule import Settings
from tests.merging.conftest import MakeModel, perturbed


class Usage(NamedTuple):
    free: int


@pytest.fixture
def pair(make_model: MakeModel, tiny: dict[str, Tensor]) -> list[Path]:
    return [make_model("a", tiny), make_model("b", perturbed(tiny, 0.1, 1))]


def refused(inputs: list[Path], output: Path, message: str, **asked: Any) -> None:
    """Assert that the merge is refused in one line and that nothing was written."""
    place = inputs[0].parent if inputs else output.parent
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with pytest.raises(ValueError, match=message) as error:
        merge_checkpoints(inputs, output, **({"method": "linear"} | asked))
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_what_was_asked_is_checked(pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(pair, out, "--method: .*did you mean slerp", method="slep")
    refused([], out, "--inputs: expected at least 1 model, got none")
    refused(pair[:1], out, "--inputs: linear expected at least 2")
    refused([*pair, pair[0]], out, "slerp expected .* got 3", method="slerp")
    refused(pair, out, r"--t: expected a number in \[0, 1\]", t=2)
    refused(pair, out, "--weights: expected 2 numbers", weights=[1, 2, 3])
    refused(pair, out, "sum above zero", weights=[0, 0])
    refused(pair, out, "--space task_vector: expected a base", space="task_vector")
    refused(pair, out, "--memory", memory=0)


def test_models_that_do_not_agree_are_refused_by_name(
    make_model: MakeModel, tiny: dict[str, Tensor], pair: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    less = make_model("less", {name: x for name, x in tiny.items() if "layers.1" not in name})
    refused([pair[0], less], out, r"less: expected the tensors of .*a, got a model that lacks layers\.1\.proj\.weight")
    refused([less, pair[0]], out, r"adds layers\.1\.proj\.weight")
    refused(pair, out, r"lacks|adds", base=less)
    wide = make_model("wide", tiny | {"embeddings.weight": torch.zeros(12, 6)})
    refused([pair[0], wide], out, r"wide: tensor embeddings\.weight: expected a vocabulary of 11 tokens .*, got 12")
    long = make_model("long", tiny | {"scale": tiny["scale"].long()})
    refused([pair[0], long], out, r"long: tensor scale: expected torch\.float32 .*got torch\.int64")
    many = make_model("many", tiny | {f"extra.{index}": torch.zeros(1) for index in range(9)})
    refused([pair[0], many], out, r"adds extra\.0, extra\.1, extra\.2 and 6 more")


def test_paths_that_are_no_models_are_refused(make_adapter: MakeModel, pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused([pair[0], tmp_path / "absent"], out, "absent: expected a model folder")
    refused(pair, out, "absent: expected a model folder", base=tmp_path / "absent")
    adapter = make_adapter("adapter", "organisation/model")
    refused([adapter, pair[0]], out, r"adapter_config\.json: .*'organisation/model'; add --base")
    refused(pair, out, "--base .*expected a whole model, got an adapter", base=adapter)
    nested = make_adapter("nested", adapter)
    refused([nested, pair[0]], out, "adapter")


def test_an_output_that_exists_or_holds_an_input_is_refused(pair: list[Path], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    refused(pair, taken, r"taken: .*add --overwrite")
    for place in (pair[0], pair[0] / "inside", tmp_path):
        refused(pair, place, r"--output .*apart from the inputs", overwrite=True)


def test_the_current_folder_is_not_overwritten(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deeper")
    refused(pair, tmp_path / "here", "got the current one", overwrite=True)


def test_too_little_disk_is_noticed_before_writing(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=100))
    refused(pair, tmp_path / "deep" / "out", "expected [0-9]+ bytes free on its disk, got 100; make room")
    assert not (tmp_path / "deep").exists()


def test_the_base_is_taken_from_the_adapters_when_they_agree(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], pair: list[Path], tmp_path: Path
) -> None:
    def plan_of(inputs: list[Path], base: Path | None = None) -> MergePlan:
        request = Request(inputs=inputs, method="linear", base=base, settings=Settings())
        return plan_merge(request, tmp_path / "out")

    of_a = [make_adapter(f"a{seed}", pair[0], seed=seed) for seed in (1, 2)]
    of_b = make_adapter("b1", pair[1])
    plan = plan_of(of_a)
    assert plan.base is plan.donor is plan.inputs[0].base
    assert plan.rule.space == "task_vector"
    plan = plan_of([of_a[0], of_b])
    assert plan.base is None
    assert plan.rule.space == "weight"
    assert plan.donor.folder == pair[0]
    plan = plan_of([pair[0], of_a[0]])
    assert plan.rule.base_index == 0
    assert plan.rule.space == "weight"
    plan = plan_of([of_a[0], of_b], pair[1])
    assert [model.base.folder for model in plan.inputs if model.base] == [pair[1], pair[1]]
