"""Bad input, in the order in which the requirements list it: refused in one line, and nothing is written.

Every case goes through the Python function and through the command, which ends with 2.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_app.command_line import main
from lightning_app.config import MergeConfig
from lightning_app.recipes import run_recipe
from merging import merge_checkpoints
from tests.merging.conftest import MakeModel, perturbed

ONE_LINE = r"expected .+(, got |, found |, where ).+; .+"
"""What was expected, what came, and what to do."""


@dataclass(frozen=True)
class Asked:
    """A merge that must not be."""

    message: str
    inputs: Sequence[Path]
    method: str = "linear"
    settings: Mapping[str, Any] = field(default_factory=dict)


class Shop:
    """Makes the folders of a case."""

    def __init__(self, tiny: dict[str, Tensor], model: MakeModel, sharded: MakeModel, adapter: MakeModel) -> None:
        self.tiny, self.model, self.sharded, self.adapter = tiny, model, sharded, adapter

    def good(self, name: str = "good", seed: int = 1) -> Path:
        return self.model(name, perturbed(self.tiny, 0.1, seed))

    def changed(self, name: str, **tensors: Tensor | None) -> Path:
        """A model some of whose tensors (with ``__`` for a dot) are others, or missing."""
        changes = {key.replace("__", "."): tensor for key, tensor in tensors.items()}
        merged = perturbed(self.tiny, 0.1, 2) | changes
        folder = self.model(name, {"w": torch.zeros(1)})
        save_file({key: tensor for key, tensor in merged.items() if tensor is not None}, folder / "model.safetensors")
        return folder


def other_shape(shop: Shop) -> Asked:
    bad = shop.changed("bad", layers__0__proj__weight=torch.ones(6, 7))
    return Asked(r"bad: tensor layers\.0\.proj\.weight: expected shape \[6, 6\].* got \[6, 7\]", [shop.good(), bad])


def other_vocabulary(shop: Shop) -> Asked:
    bad = shop.changed("bad", embeddings__weight=torch.ones(12, 6))
    return Asked(r"embeddings\.weight: expected a vocabulary of 11 tokens .*got 12", [shop.good(), bad])


def other_dtype(shop: Shop) -> Asked:
    bad = shop.changed("bad", norm__weight=torch.ones(6, dtype=torch.int64))
    return Asked(r"tensor norm\.weight: expected torch\.float32 .*got torch\.int64", [shop.good(), bad])


def other_integers(shop: Shop) -> Asked:
    bad = shop.changed("bad", position_ids=torch.arange(8).reshape(1, 8) + 1)
    return Asked(r"tensor position_ids: expected equal values in all inputs", [shop.good(), bad])


def missing_tensor(shop: Shop) -> Asked:
    return Asked(
        r"bad: expected the tensors .*lacks norm\.weight", [shop.good(), shop.changed("bad", norm__weight=None)]
    )


def extra_tensor(shop: Shop) -> Asked:
    return Asked(r"bad: expected the tensors .*adds head", [shop.good(), shop.changed("bad", head=torch.ones(2))])


def no_base(shop: Shop) -> Asked:
    return Asked(
        "--base: ties expected a base to take differences from, got none", [shop.good(), shop.good("b", 2)], "ties"
    )


def too_few(shop: Shop) -> Asked:
    return Asked("--inputs: karcher expected at least 2 models, got 1", [shop.good()], "karcher")


def too_many(shop: Shop) -> Asked:
    return Asked("slerp expected exactly 2 models, got 3", [shop.good(str(seed), seed) for seed in (1, 2, 3)], "slerp")


def weights_of_nothing(shop: Shop) -> Asked:
    inputs = [shop.good(), shop.good("b", 2)]
    return Asked(
        r"--weights: expected a sum above zero, got \[0\.0, 0\.0\]", inputs, "karcher", {"weights": [0.0, 0.0]}
    )


def weights_that_cancel(shop: Shop) -> Asked:
    settings = {"weights": [1.0, -1.0], "extrapolate": True}
    return Asked("--weights: expected a sum above zero", [shop.good(), shop.good("b", 2)], "karcher", settings)


def t_outside(shop: Shop) -> Asked:
    inputs = [shop.good(), shop.good("b", 2)]
    return Asked(r"--t: expected a number in \[0, 1\], got 1\.5; .*--extrapolate", inputs, "slerp", {"t": 1.5})


def spoiled(shop: Shop, value: float, inputs: int = 2) -> Asked:
    norm = torch.ones(6)
    norm[1:4] = value
    bad = shop.changed("bad", norm__weight=norm)
    message = r"bad/model\.safetensors: tensor norm\.weight: expected finite values, got 3 that are NaN or infinite"
    return Asked(message, [shop.good(), bad][-inputs:], "linear" if inputs > 1 else "passthrough")


def not_a_number(shop: Shop) -> Asked:
    return spoiled(shop, float("nan"))


def infinite(shop: Shop) -> Asked:
    return spoiled(shop, float("-inf"))


def not_a_number_passed_through(shop: Shop) -> Asked:
    return spoiled(shop, float("nan"), inputs=1)


def not_a_number_in_the_base(shop: Shop) -> Asked:
    bad = shop.changed("bad", scale=torch.tensor(float("nan")))
    message = r"bad/model\.safetensors: tensor scale: .*got 1 that are NaN or infinite"
    return Asked(message, [shop.good(), shop.good("b", 2)], "ties", {"base": bad})


def overflow(shop: Shop) -> Asked:
    bad = shop.changed("bad", norm__weight=torch.full((6,), 2e5))
    message = r"tensor norm\.weight: expected values that fit into torch\.float16, got 1e\+05; merge in fp32"
    return Asked(message, [shop.good(), bad], "linear", {"dtype": "float16"})


def index_that_leaves(shop: Shop) -> Asked:
    bad = shop.sharded("bad", [shop.tiny], dict.fromkeys(shop.tiny, "../good/model.safetensors"))
    message = r"index\.json: expected names of safetensors files beside it, got '\.\./good/model\.safetensors'"
    return Asked(message, [shop.good(), bad])


def damaged(shop: Shop, change: Callable[[bytes], bytes]) -> Asked:
    names = list(shop.tiny)
    bad = shop.sharded("bad", [{name: shop.tiny[name]} for name in names])
    file = bad / f"model-00003-of-{len(names):05}.safetensors"
    file.write_bytes(change(file.read_bytes()))
    return Asked(rf"{file.name}: expected .*bytes.*truncated", [shop.good(), bad])


def truncated(shop: Shop) -> Asked:
    return damaged(shop, lambda data: data[:-3])


def padded(shop: Shop) -> Asked:
    return damaged(shop, lambda data: data + bytes(8))


def long_header(shop: Shop) -> Asked:
    bad = shop.good("bad")
    with (bad / "model.safetensors").open("wb") as sparse:
        sparse.write((100_000_001).to_bytes(8, "little"))
        sparse.truncate(100_000_100)
    return Asked("expected a header of at most 100000000 bytes, got 100000001", [shop.good(), bad])


def repeated_key(shop: Shop) -> Asked:
    bad = shop.sharded("bad", [{"w": torch.zeros(1)}])
    shard = '"w": "model-00001-of-00001.safetensors"'
    (bad / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{shard}, {shard}}}}}')
    return Asked(r"index\.json, lines? 1: expected each key once, got 'w' twice", [shop.good(), bad])


def unknown_method(shop: Shop) -> Asked:
    return Asked(
        "--method: expected one of .*, got 'slrep'; did you mean slerp", [shop.good(), shop.good("b")], "slrep"
    )


def keys_of_nothing(shop: Shop) -> Asked:
    base = shop.good()
    bad = shop.adapter("bad", base, modules=["layers.9.proj"])
    return Asked(
        r"bad/adapter_model\.safetensors: expected keys .*got layers\.9\.proj, which matches no tensor",
        [bad, bad],
        "linear",
        {"base": base},
    )


CASES = [
    *(other_shape, other_vocabulary, other_dtype, other_integers, missing_tensor, extra_tensor),
    *(no_base, too_few, too_many, weights_of_nothing, weights_that_cancel, t_outside),
    *(not_a_number, infinite, not_a_number_passed_through, not_a_number_in_the_base, overflow),
    *(index_that_leaves, truncated, padded, long_header, repeated_key, unknown_method, keys_of_nothing),
]


@pytest.fixture
def shop(tiny: dict[str, Tensor], make_model: MakeModel, make_sharded: MakeModel, make_adapter: MakeModel) -> Shop:
    return Shop(tiny, make_model, make_sharded, make_adapter)


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def flags(settings: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for key, value in settings.items():
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            words += [flag]
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return words


def ends_with_2(argv: Sequence[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command; returns its one line."""
    before = tree(folder)
    capsys.readouterr()
    assert main(MergeConfig, "lightning_app.merging:merge", argv=argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert re.search(ONE_LINE, err), err
    assert {path: time for path, time in tree(folder).items() if path != folder} == {
        path: time for path, time in before.items() if path != folder
    }
    return err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_is_refused_and_nothing_is_written(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Callable[[Shop], Asked]
) -> None:
    asked = case(shop)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=asked.message) as error:
        merge_checkpoints(asked.inputs, tmp_path / "out", method=asked.method, **asked.settings)
    assert "\n" not in str(error.value)
    assert tree(tmp_path).keys() == before.keys()
    argv = ["--method", asked.method, "--inputs", *map(str, asked.inputs), *flags(asked.settings)]
    # The folders above the output are missing too, and are so afterwards.
    ends_with_2([*argv, "--output", str(tmp_path / "deep" / "er" / "out")], asked.message, tmp_path, capsys)


RECIPES = [
    ("method: slerp\nmethod: linear\ninputs: [{a}, {b}]\n", r"line 2: expected each key once, got 'method' twice"),
    ("mehtod: slerp\ninputs: [{a}, {b}]\nmethod: linear", r"expected .*, got 'mehtod'; did you mean method\?"),
    ("merge_method: slerp\nmdoels: [{{model: {a}}}]\n", r"got 'mdoels'; did you mean models\?"),
    ("merge_method: slerp\nmerge_method: ties\n", r"line 2: expected each key once, got 'merge_method' twice"),
    ("method: linear\ninputs: [{a}, {{model: {b}, wieght: 2}}]\n", r"inputs\[1\]: .*got 'wieght'; did you mean weight"),
    ("method: slerp\ninputs: [{a}, {b}]\nt: 1.5\n", r"expected a number in \[0, 1\], got 1\.5"),
    ("method: slerp\ninputs: [{a}, {b}, {a}]\n", "slerp expected exactly 2 models, got 3"),
    ("method: ties\ninputs: [{a}, {b}]\n", "ties expected a base to take differences from, got none"),
]


@pytest.mark.parametrize(("text", "message"), RECIPES)
def test_a_recipe_is_refused_and_nothing_is_written(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.format(a=shop.good("a", 1), b=shop.good("b", 2)))
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_recipe(recipe, tmp_path / "out", locate=lambda name, revision: Path(name))
    assert tree(tmp_path).keys() == before.keys()
    output = tmp_path / "deep" / "out"
    ends_with_2(["--recipe", str(recipe), "--output", str(output)], message, tmp_path, capsys)


def test_repeated_and_unknown_settings_of_the_command_are_refused(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [str(shop.good("a", 1)), str(shop.good("b", 2))]
    file, output = tmp_path / "merge.json", str(tmp_path / "deep" / "out")
    for text, message in (
        ('{"method": "linear", "method": "slerp"}', r"line 1: expected each key once, got 'method' twice"),
        (json.dumps({"method": "linear", "granulatiry": "row"}), "got 'granulatiry'; closest: granularity"),
    ):
        file.write_text(text)
        argv = ["--config", str(file), "--inputs", *inputs, "--output", output]
        ends_with_2(argv, message, tmp_path, capsys)


def test_an_output_that_exists_is_refused(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, taken = [shop.good(), shop.good("b", 2)], tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    message = r"output folder .*taken: expected a name that is free, got one that exists; .*--overwrite"
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(inputs, taken, method="linear")
    argv = ["--method", "linear", "--inputs", *map(str, inputs), "--output", str(taken)]
    ends_with_2(argv, message, tmp_path, capsys)
    ends_with_2([*argv, "--overwrite"], r"expected an earlier merge \(merge\.json\), got another", tmp_path, capsys)
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


def test_too_little_disk_is_refused_before_anything_is_written(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [shop.good(), shop.good("b", 2)]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    monkeypatch.setattr("merging.engine.carry_out", lambda *_, **__: pytest.fail("merged"))
    message = r"--output .*out: expected [0-9]+ bytes free on its disk, got 100; make room"
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(inputs, tmp_path / "out", method="linear")
    argv = ["--method", "linear", "--inputs", *map(str, inputs), "--output", str(tmp_path / "deep" / "er" / "out")]
    ends_with_2(argv, message, tmp_path, capsys)


def test_a_place_that_nothing_can_be_written_to_is_refused(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, file = [shop.good(), shop.good("b", 2)], tmp_path / "file"
    file.write_text("no folder")
    argv = ["--method", "linear", "--inputs", *map(str, inputs), "--output"]
    message = r"--output .*: expected a place in a folder, got the file .*file; choose another"
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(inputs, file / "deep" / "out", method="linear")
    ends_with_2([*argv, str(file / "deep" / "out")], message, tmp_path, capsys)
    # Permissions do not bind the superuser, so the answer is made up.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    message = r"expected a folder that may be written to, got "
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(inputs, tmp_path / "out", method="linear")
    ends_with_2([*argv, str(tmp_path / "deep" / "out")], message, tmp_path, capsys)
