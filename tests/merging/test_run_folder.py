import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.run_folder import folder_of_weights
from merging.sources import open_model
from storage.manifest import fingerprint, write_manifest
from tests.merging.conftest import MakeModel

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor]) -> MakeRun:
    """Lay out a run folder as training does: a stage 0 without weights, and adapters on the model ``base``."""

    def make(*stages: str, base: Path | None = None) -> Path:
        base = base or make_model("base", tiny)
        run = tmp_path / "run"
        (run / "stages" / "0-base").mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"output": "run", "overwrite": False, "stages": []}))
        (run / "stages" / "0-base" / "metrics.json").write_text("{}")
        write_manifest(run / "stages" / "0-base", stage="0-base", backbone="tiny-llm", seed=0)
        recorded = {"name": "tiny-llm", "path": str(base), "revision": None, "fingerprint": fingerprint(base)}
        for name in stages:
            adapter = make_adapter("making", base)
            write_manifest(adapter, base=recorded, stage=name, backbone="tiny-llm")
            adapter.rename(run / "stages" / name)
        return run

    return make


def test_a_run_is_refused_with_the_names_of_its_models(make_run: MakeRun) -> None:
    run = make_run("10-last", "2-six", "1-broad")
    (run / "merged" / "karcher").mkdir(parents=True)
    in_order = ", ".join(str(run / "stages" / name) for name in ("0-base", "1-broad", "2-six", "10-last"))
    message = rf"expected one model, got the folder of a run; .*: {in_order}, {run / 'merged' / 'karcher'}$"
    for path in (run, run / "stages"):
        with pytest.raises(ValueError, match=rf"^{path}: {message}"):
            open_model(path)


def test_the_base_stage_stands_for_the_base(make_run: MakeRun, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    run = make_run("1-broad")
    model = open_model(run / "stages" / "0-base")
    assert model.path == str(tmp_path / "base")
    assert model.folder == tmp_path / "base"
    assert set(model.tensors) == set(tiny)


def test_a_base_stage_with_weights_is_a_model(make_run: MakeRun, make_model: MakeModel, tmp_path: Path) -> None:
    run = make_run()
    stage = run / "stages" / "0-base"
    shutil.rmtree(stage)
    make_model("encoder", {"w": torch.ones(2)}).rename(stage)
    write_manifest(stage, stage="0-base", backbone="tiny-encoder")
    assert folder_of_weights(stage) == stage
    assert open_model(stage).tensors.keys() == {"w"}


def test_a_base_stage_whose_base_cannot_be_told_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    stage = make_run() / "stages" / "0-base"
    with pytest.raises(ValueError, match=r"0-base: expected weights, got a stage without any.*folder of tiny-llm"):
        open_model(stage)


def test_a_base_that_is_gone_or_changed_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    stage = make_run("1-broad") / "stages" / "0-base"
    weights = tmp_path / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=rf"0-base: expected the base that the run.*other weights in {tmp_path}/base"):
        open_model(stage)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ValueError, match=rf"0-base: expected the run's base at {tmp_path}/base, got nothing there"):
        open_model(stage)


def test_other_folders_are_themselves(make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    plain = make_model("a", tiny, dense={"linear.weight": torch.ones(1, 6)})
    assert folder_of_weights(plain) == plain
    (plain / "stages").mkdir()
    assert folder_of_weights(plain) == plain, "a model may have a folder of that name"
    (tmp_path / "empty").mkdir()
    assert folder_of_weights(tmp_path / "empty") == tmp_path / "empty"
    (tmp_path / "empty" / "manifest.json").write_text("[]")
    assert folder_of_weights(tmp_path / "empty") == tmp_path / "empty"
