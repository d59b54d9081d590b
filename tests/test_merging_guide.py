"""docs/merging.md is what it claims to be: its tables are those of the code, its Python runs, its tests exist."""

import doctest
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_app.command_line import parse
from lightning_app.config import MergeConfig
from merging import METHODS, merge_adapters, merge_checkpoints
from merging.mergekit_parts import PARAMETERS, UNNEEDED, WHOLE, role_of
from merging.methods import Method
from merging.options import Options
from merging.recipe import EACH, KNOWN_OF_ALL, REFERENCE
from merging.recipe_file import read_recipe_file
from merging.sparse import DEFAULTS
from storage.tensor_file import write_tensors

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "merging.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{2,3}} |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert found, f"the guide has no section {heading!r}"
    return found[2]


def named_first(text: str) -> set[str]:
    """The names in code type of the first column of the tables."""
    cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def row_of(method: Method) -> str:
    """A line of the table of methods."""
    most = "" if method.maximum == method.minimum else "+" if method.maximum is None else f"-{method.maximum}"
    base = "needed" if method.needs_base else ""
    takes = ", ".join(f"`{name}`{default_of(method, name)}" for name in sorted(method.takes))
    cells = (f"`{method.name}`", method.summary, f"{method.minimum}{most}", base, takes, method.reference)
    return f"| {' | '.join(cells)} |"


def default_of(method: Method, option: str) -> str:
    """The method's own default in brackets, where it has one."""
    defaults = dict(method.defaults)
    return f" ({str(defaults[option]).lower()})" if option in defaults else ""


def test_the_table_of_methods_is_that_of_the_code() -> None:
    lines = [line for line in section("Methods").splitlines() if line.startswith("| `")]
    assert lines == [row_of(method) for method in METHODS.values()]


def test_the_defaults_of_the_guide_are_those_of_the_code() -> None:
    said = dict(re.findall(r"`(\w+)` ([\d.]+\d|\d)[,;]", section("Methods")))
    plain = Options()
    assert said == {
        **{name: f"{value:g}" for name, value in DEFAULTS.items()},
        **{name: f"{getattr(plain, name):g}" for name in ("scale", "select_topk")},
    }


def test_the_help_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(MergeConfig, ["--help"])
    shown = capsys.readouterr().out
    assert [name for name in METHODS if not re.search(rf"\b{name}\b", shown)] == []


def test_the_keys_of_recipes_are_those_of_the_code() -> None:
    ours = section("Our form")
    assert named_first(ours) == {*KNOWN_OF_ALL, *REFERENCE, *EACH}
    theirs = section("mergekit's form")
    for key in (*PARAMETERS, *UNNEEDED, *WHOLE):
        assert f"`{key}`" in theirs, key
    for row in METHODS.values():
        assert (f"`{row.name}`" in section("What mergekit does not have")) == (role_of(row) is None), row.name


def test_the_fields_of_merge_json_are_described(tmp_path: Path) -> None:
    base, one, two = (model(tmp_path / name, seed) for seed, name in enumerate(("base", "one", "two")))
    first, second = (adapter(tmp_path / f"adapter{seed}", base, seed) for seed in (1, 2))
    written = [
        merge_checkpoints([one, two], tmp_path / "out", method="karcher", base=base),
        merge_checkpoints([first, two], tmp_path / "mixed", method="ties", base=base, density=0.5),
        merge_adapters([first, second], tmp_path / "adapter", method="karcher"),
    ]
    described = named_first(section("merge.json"))
    assert {name for report in written for name in fields_of(report)} | {"search"} == described


def model(folder: Path, seed: int) -> Path:
    """A model of two tensors; the second is zero in the first model, which makes a note."""
    folder.mkdir()
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
    write_tensors(folder / "model.safetensors", {"layers.0.proj.weight": weight, "norm.weight": seed // 2 * weight[0]})
    (folder / "config.json").write_text("{}")
    return folder


def adapter(folder: Path, base: Path, seed: int) -> Path:
    folder.mkdir()
    a, b = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(seed))
    named = {"lora_A": a, "lora_B": b.mT.contiguous()}
    factors = {f"base_model.model.layers.0.proj.{part}.weight": tensor for part, tensor in named.items()}
    write_tensors(folder / "adapter_model.safetensors", factors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def fields_of(report: dict[str, Any]) -> set[str]:
    """Names of all fields, those of inputs, summary and tensors included; parameters are named after their flags."""
    inner = [*report["inputs"], report["summary"], *report["tensors"].values()]
    return {*report, *(name for entry in inner for name in entry)}


def test_the_python_of_the_guide_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "docs/merging.md", None, 0)
    assert len(example.examples) > 5
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_recipes_of_the_guide_are_recipes(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "recipe.yaml").write_text(block)
        assert all(recipe.notes == () for recipe in read_recipe_file(tmp_path / "recipe.yaml").recipes)


def test_the_tests_that_the_guide_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", GUIDE))
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert {name for name in named if f"def {name}(" not in code} == set()


def test_every_command_of_the_guide_has_flags_that_exist() -> None:
    lines = re.findall(r"^(?:\$ )?python merge\.py (.*)$", GUIDE.replace("\\\n", " "), re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        assert parse(MergeConfig, line.split("  #")[0].split()).output
