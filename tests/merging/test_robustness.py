"""What goes wrong around a merge, and inputs of unusual shape: no hang, nothing left behind, no thread alive."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_app.command_line import main
from lightning_app.config import MergeConfig
from merging import METHODS, combining, measuring, merge_checkpoints, merge_state_dicts, reading
from merging.device_tasks import merge_files_on_device, suits_device
from merging.plan import plan_merge
from merging.request import Request
from merging.schedule import Settings
from storage import hashing
from storage.hashing import FileHashes, TrailingHash
from storage.json_file import read_json
from storage.lock import folder_lock
from storage.manifest import verify_manifest
from storage.tensor_file import read_tensors, write_tensors
from tests.merging import oracle
from tests.merging.conftest import MakeModel, perturbed


@pytest.fixture
def pair(make_model: MakeModel, tiny: dict[str, Tensor]) -> list[Path]:
    for row in METHODS.values():
        _ = row.function  # compiling a module while another thread fails trips over a fault of CPython 3.11
    return [make_model("a", tiny), make_model("b", perturbed(tiny, 0.1, 1))]


@pytest.fixture
def nothing_left(pair: list[Path], tmp_path: Path) -> Iterator[None]:
    """When the test is over, the folder holds what it held, and the threads of the merge have ended."""
    before, threads = sorted(tmp_path.rglob("*")), set(threading.enumerate())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=20)
    assert set(threading.enumerate()) <= threads
    assert sorted(tmp_path.rglob("*")) == before
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


class Dead(Exception):  # noqa: N818
    """What no code of ours expects."""


def dying(function: Callable[..., Any], after: int = 0, error: type[BaseException] = Dead) -> Callable[..., Any]:
    """The function, until it has been called ``after`` times."""
    calls = iter(range(after))

    def called(*arguments: Any, **named: Any) -> Any:
        if next(calls, None) is None:
            raise error("gone")
        return function(*arguments, **named)

    return called


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("module", "name", "after"),
    [(measuring, "_measure_block", 0), (measuring, "_measure_block", 3), (combining, "_combine_block", 2)],
)
def test_a_worker_that_dies_ends_the_merge(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, module: Any, name: str, after: int
) -> None:
    monkeypatch.setattr(module, name, dying(getattr(module, name), after))
    with pytest.raises(Dead):
        merge_checkpoints(pair, tmp_path / "out", method="karcher", threads=threads)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("call", ["advance", "close"])
def test_a_thread_that_hashes_inputs_and_dies_ends_the_merge(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(hashing._HashedFile, call, dying(getattr(hashing._HashedFile, call)))
    with pytest.raises(RuntimeError, match="the hash was given up"):
        merge_checkpoints(pair, tmp_path / "out", method="linear")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("error", [Dead, OSError])
def test_a_thread_that_hashes_the_result_and_dies_ends_the_merge(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """With several files, all of them are closed and all their threads end."""
    monkeypatch.setattr(TrailingHash, "_hash_to", dying(TrailingHash._hash_to, 1, error))
    with pytest.raises(error):
        merge_checkpoints(pair, tmp_path / "out", method="linear", shard_bytes=200)


@pytest.mark.usefixtures("nothing_left")
def test_a_merge_by_windows_of_a_device_that_dies_ends(tmp_path: Path, make_model: MakeModel, pair: list[Path]) -> None:
    request = Request(inputs=pair, method="slerp", settings=Settings())
    tasks = [task for task in plan_merge(request, tmp_path / "out").tasks if suits_device(task)]
    for after in range(3):
        keep = dying(lambda task, first, values: None, after)
        with pytest.raises(Dead) as error:
            merge_files_on_device(tasks, keep, torch.device("cpu"), memory=600)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("staging")]
        assert error.tb is not None, "the traceback is held, and with it every frame"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_merge_leaves_nothing(pair: list[Path], tmp_path: Path, threads: int) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints(pair, tmp_path / "out", method="slerp", threads=threads, progress=interrupt)


@pytest.mark.usefixtures("nothing_left")
def test_an_interrupted_command_ends_with_130(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(combining, "_combine_block", dying(combining._combine_block, 1, KeyboardInterrupt))
    argv = ["--method", "slerp", "--inputs", *map(str, pair), "--output", str(tmp_path / "deep" / "out")]
    assert main(MergeConfig, "lightning_app.merging:merge", argv=[*argv, "--threads", "1"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


@pytest.mark.usefixtures("nothing_left")
def test_a_refused_merge_stops_hashing_its_inputs(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes would be read for nobody."""
    monkeypatch.setattr(hashing._HashedFile, "advance", lambda self, piece: time.sleep(0.01))  # a file without an end
    with pytest.raises(Dead):
        merge_checkpoints(pair, tmp_path / "out", method="linear", progress=dying(print))
    hashing_threads = [thread for thread in threading.enumerate() if thread.name == "sha256"]
    for thread in hashing_threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in hashing_threads)


@pytest.mark.usefixtures("nothing_left")
def test_an_input_that_shrinks_while_it_is_merged_is_refused(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reading.OpenFiles.read

    def read(self: Any, source: Any, *arguments: Any) -> None:
        os.truncate(pair[1] / "model.safetensors", 700)
        real(self, source, *arguments)

    monkeypatch.setattr(reading.OpenFiles, "read", read)
    with pytest.raises(ValueError, match=r"b/model\.safetensors: .*expected .* got (fewer|changes)"):
        merge_checkpoints(pair, tmp_path / "out", method="linear")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("replaced", [False, True])
def test_an_input_that_changes_while_it_is_merged_is_refused(
    pair: list[Path], tmp_path: Path, tiny: dict[str, Tensor], replaced: bool
) -> None:
    """Its hash would be that of other numbers than those that were merged."""
    file = pair[1] / "model.safetensors"

    def change(done: int, total: int) -> None:
        if replaced:
            write_tensors(file, perturbed(tiny, 0.1, 2), {"format": "pt"})
        else:
            with file.open("r+b") as opened:
                opened.seek(-4, os.SEEK_END)
                opened.write(b"\1\2\3\4")

    hashes = FileHashes()
    for path in pair:
        hashes.sha256(path / "model.safetensors")
    with pytest.raises(ValueError, match=r"b/model\.safetensors: expected a file that stays as it is, got changes"):
        merge_checkpoints(pair, tmp_path / "out", method="linear", progress=change, hashes=hashes)


def test_a_second_command_on_one_output_is_turned_away(
    pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--method", "linear", "--inputs", *map(str, pair), "--output", str(tmp_path / "out")]
    with folder_lock(tmp_path / "out"):
        assert main(MergeConfig, "lightning_app.merging:merge", argv=argv) == 2
        assert "expected a folder of ours alone, got one in use by another process" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert main(MergeConfig, "lightning_app.merging:merge", argv=argv) == 0


def test_two_merges_into_one_output_leave_one_whole(pair: list[Path], tmp_path: Path) -> None:
    """Without the command's lock: the second to finish finds the name taken."""
    out = tmp_path / "out"

    def meanwhile(done: int, total: int) -> None:
        if not out.exists():
            merge_checkpoints(pair, out, method="slerp")

    with pytest.raises(ValueError, match="expected a name that is free"):
        merge_checkpoints(pair, out, method="linear", progress=meanwhile)
    assert verify_manifest(out)["kind"] == "merge"
    assert read_json(out / "merge.json")["method"] == "slerp"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_inputs_may_be_links_to_files_of_other_names(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    """As in the hub's cache, where a snapshot's files are links to blobs."""
    real = [make_model("a", tiny), make_model("b", perturbed(tiny, 0.1, 1)), make_adapter("stage", "base")]
    links = []
    for folder in real:
        snapshot = tmp_path / "hub" / folder.name / "snapshots" / "main"
        (snapshot.parents[1] / "blobs").mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for number, file in enumerate(sorted(folder.iterdir())):
            blob = snapshot.parents[1] / "blobs" / f"{number:064}"
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
        (tmp_path / f"link-{folder.name}").symlink_to(snapshot)
        links.append(tmp_path / f"link-{folder.name}")
    reports = [
        merge_checkpoints(inputs, tmp_path / name, method="linear", base=inputs[0])
        for name, inputs in (("plain", real), ("linked", links))
    ]
    plain, linked = (read_tensors(tmp_path / name / "model.safetensors") for name in ("plain", "linked"))
    assert all(torch.equal(linked[name], plain[name]) for name in plain)
    assert [entry["sha256"] for entry in reports[0]["inputs"]] == [entry["sha256"] for entry in reports[1]["inputs"]]
    assert not any(path.is_symlink() for path in (tmp_path / "linked").iterdir())
    verify_manifest(tmp_path / "linked")


@pytest.mark.parametrize("memory", [1, 2**31])
@pytest.mark.parametrize("method", METHODS)
def test_tensors_without_elements_and_single_numbers(
    make_model: MakeModel, tmp_path: Path, method: str, memory: int
) -> None:
    def model(seed: int) -> dict[str, Tensor]:
        number = torch.tensor(1.0 + seed)
        shapes = {"none": (0,), "no_columns": (3, 0), "no_rows": (0, 3), "one": (1,), "one_by_one": (1, 1)}
        return {name: torch.full(shape, 1.0 + seed) for name, shape in shapes.items()} | {"scalar": number}

    count = METHODS[method].maximum or 3
    folders = [make_model(f"in{seed}", model(seed)) for seed in range(1, 1 + count)]
    base = make_model("base", model(0)) if METHODS[method].needs_base else None
    report = merge_checkpoints(folders, tmp_path / "out", method=method, base=base, memory=memory)
    got = read_tensors(tmp_path / "out" / "model.safetensors")
    for name, tensor in model(0).items():
        assert got[name].shape == tensor.shape
        assert report["tensors"][name]["state"] == ("merged" if tensor.numel() and count > 1 else "unchanged")
    memory_result = merge_state_dicts(
        [model(seed) for seed in range(1, 1 + count)], method=method, base=model(0) if base else None
    )
    assert all(torch.equal(got[name], memory_result[name]) for name in got)


@pytest.mark.parametrize("method", ["karcher", "ties"])
def test_a_row_longer_than_any_chunk(make_model: MakeModel, tmp_path: Path, method: str) -> None:
    models = [{"w": torch.randn(1, 1_500_000, generator=torch.Generator().manual_seed(seed))} for seed in range(3)]
    base, *folders = [make_model(f"in{seed}", model) for seed, model in enumerate(models)]
    for name, memory in (("small", 1), ("large", 2**31)):
        merge_checkpoints(folders, tmp_path / name, method=method, base=base, memory=memory)
    small, large = (read_tensors(tmp_path / name / "model.safetensors")["w"] for name in ("small", "large"))
    assert torch.equal(small, large)
    if method == "karcher":
        origin, *others = (model["w"].double() for model in models)
        expected = origin + oracle.slerp(others[0] - origin, others[1] - origin, 0.5)
        assert oracle.relative_error(large, expected) < 3e-6


@pytest.mark.parametrize(
    ("count", "memory"), [(200, 1), (600, 2**31), pytest.param(5000, 2**31, marks=pytest.mark.slow)]
)
def test_thousands_of_small_tensors(make_model: MakeModel, tmp_path: Path, count: int, memory: int) -> None:
    models = [{f"layers.{i}.w": torch.full((2, 3), float(i + seed + 1)) for i in range(count)} for seed in range(2)]
    folders = [make_model(f"in{seed}", model) for seed, model in enumerate(models)]
    report = merge_checkpoints(folders, tmp_path / "out", method="slerp", memory=memory)
    assert report["summary"]["tensors"] == count
    got = read_tensors(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, models[0][name] + 0.5) for name, tensor in got.items())


def test_eight_adapters_of_one_base_under_a_small_budget(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = make_model("base", tiny)
    adapters = [make_adapter(f"stage{seed}", base, seed=seed) for seed in range(8)]
    folded = []
    for index, adapter in enumerate(adapters):
        merge_checkpoints([adapter], tmp_path / f"folded{index}", method="passthrough")
        folded.append(tmp_path / f"folded{index}")
    for method in ("linear", "karcher", "ties"):
        merge_checkpoints(adapters, tmp_path / f"{method}-small", method=method, memory=1)
        merge_checkpoints(adapters, tmp_path / f"{method}-large", method=method)
        merge_checkpoints(folded, tmp_path / f"{method}-folded", method=method, base=base)
        small, large, dense = (
            read_tensors(tmp_path / f"{method}-{kind}" / "model.safetensors") for kind in ("small", "large", "folded")
        )
        for name in tiny:
            assert torch.equal(small[name], large[name])
            torch.testing.assert_close(large[name], dense[name], rtol=1e-5, atol=1e-6)
