"""Recipe files that are carried out: names to folders, documents in order, nothing left behind."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_app import recipes
from lightning_app.recipes import plan_recipe, run_recipe
from storage.tensor_file import read_tensors, write_tensors

CONFIGS = Path(__file__).parents[1] / "merging" / "mergekit_configs"
Locate = Callable[[str, str | None], Path]


def weights(layers: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"embed_tokens.weight": torch.randn(5, 4, generator=generator), "norm.weight": torch.rand(4)}
    for i in range(layers):
        tensors[f"layers.{i}.self_attn.q_proj.weight"] = torch.randn(4, 4, generator=generator)
        tensors[f"layers.{i}.mlp.up_proj.weight"] = torch.randn(6, 4, generator=generator)
    return tensors


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., Locate]:
    """``shop(layers)`` returns a ``locate`` that makes up a model for every name it is asked for, adapters included."""

    def open_shop(layers: int = 3, asked: list[tuple[str, str | None]] | None = None) -> Locate:
        def locate(name: str, revision: str | None) -> Path:
            folder = tmp_path / "models" / name
            if asked is not None:
                asked.append((name, revision))
            if folder.exists():
                return folder
            folder.mkdir(parents=True)
            if "adapter" in name:
                module = "base_model.model.layers.1.self_attn.q_proj"
                pair = {f"{module}.lora_A.weight": torch.ones(2, 4), f"{module}.lora_B.weight": torch.ones(4, 2)}
                write_tensors(folder / "adapter_model.safetensors", pair)
                config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none", "base_model_name_or_path": None}
                (folder / "adapter_config.json").write_text(json.dumps(config))
            else:
                write_tensors(folder / "model.safetensors", weights(layers, seed=sum(map(ord, name))))
                (folder / "config.json").write_text("{}")
                (folder / "vocab.txt").write_text("a\nb\n")
                (folder / "who.txt").write_text(name)
            return folder

        return locate

    return open_shop


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "merge.yaml").write_text(text)
    return tmp_path / "merge.yaml"


def merged(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "model.safetensors")


def test_a_recipe_of_ours_with_a_gradient(tmp_path: Path, shop: Callable[..., Locate]) -> None:
    locate = shop()
    text = "method: linear\ninputs: [a, {model: b}]\nweights: [1, [{filter: mlp, value: [0, 3]}, {value: 1}]]\n"
    run_recipe(written(tmp_path, text), tmp_path / "out", locate=locate)
    a, b, got = (merged(folder) for folder in (locate("a", None), locate("b", None), tmp_path / "out"))
    for name, tensor in got.items():
        weight = {0: 0.0, 1: 1.5, 2: 3.0}[int(name.split(".")[1])] if "mlp" in name else 1.0
        torch.testing.assert_close(tensor, (a[name] + weight * b[name]) / (1 + weight))


def test_later_documents_take_the_results_of_earlier_ones(tmp_path: Path, shop: Callable[..., Locate]) -> None:
    asked: list[tuple[str, str | None]] = []
    locate = shop(asked=asked)
    text = "name: m\nmethod: linear\ninputs: [a, b]\n---\nmethod: linear\ninputs: [m, {model: c, revision: r}]\n"
    run_recipe(written(tmp_path, text), tmp_path / "out", locate=locate)
    assert asked == [("a", None), ("b", None), ("c", "r")]
    a, b, c, got = (merged(folder) for folder in (*(locate(n, None) for n in "abc"), tmp_path / "out"))
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, (a[name] + b[name]) / 4 + c[name] / 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yaml", "models", "out"]
    assert text.splitlines()[1] in (tmp_path / "out" / "README.md").read_text()


def test_nothing_is_left_of_a_file_whose_last_document_fails(
    tmp_path: Path, shop: Callable[..., Locate], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = recipes.merge_checkpoints, 0

    def failing(*arguments: Any, **named: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert [path.name for path in (tmp_path / ".out.documents").iterdir()] == ["m"]
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(recipes, "merge_checkpoints", failing)
    text = "name: m\nmethod: linear\ninputs: [a, b]\n---\nmethod: linear\ninputs: [m, c]\n"
    with pytest.raises(KeyboardInterrupt):
        run_recipe(written(tmp_path, text), tmp_path / "out", locate=shop())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yaml", "models"]


BAD_LAST = "name: m\nmethod: linear\ninputs: [a, b]\n---\n"
MISTAKES = [
    ("method: slerp\ninputs: [a, b]\nt: 1.5\n", r"expected a number in \[0, 1\], got 1.5"),
    (BAD_LAST + "method: slerp\ninputs: [m, c]\nt: 1.5\n", r"expected a number in \[0, 1\], got 1.5"),
    (BAD_LAST + "method: linear\ninputs: [m, c]\nt: [{filter: mpl, value: 0}, {value: 1}]\n", "filter 'mpl'"),
    (BAD_LAST + "method: ties\ninputs: [m, c]\n", "expected a base|--base"),
    (BAD_LAST + "method: linear\ninputs: [m, c]\ngranularity: cell\n", "got 'cell'"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_are_found_before_anything_is_merged(
    tmp_path: Path, shop: Callable[..., Locate], monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    from merging import engine

    monkeypatch.setattr(engine, "carry_out", lambda *_, **__: pytest.fail("merged"))
    with pytest.raises(ValueError, match=message):
        run_recipe(written(tmp_path, text), tmp_path / "out", locate=shop())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yaml", "models"]


def test_an_output_that_exists_is_refused_first(tmp_path: Path, shop: Callable[..., Locate]) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="expected a name that is free"):
        run_recipe(written(tmp_path, "method: linear\ninputs: [a, b]"), tmp_path / "out", locate=shop())


def test_what_has_no_effect_is_warned_of(tmp_path: Path, shop: Callable[..., Locate]) -> None:
    text = "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {tol: 1.0e-6}\n"
    with pytest.warns(UserWarning, match=r"merge.yaml: tol: without effect"):
        plan_recipe(written(tmp_path, text), tmp_path / "out", locate=shop())


def test_the_tokenizer_of_another_model(tmp_path: Path, shop: Callable[..., Locate]) -> None:
    locate = shop()
    text = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\ntokenizer_source: %s\n"
    run_recipe(written(tmp_path, text % "b"), tmp_path / "out", locate=locate)
    assert (tmp_path / "out" / "who.txt").read_text() == "b"
    (locate("b", None) / "vocab.txt").write_text("b\na\n")
    with pytest.raises(ValueError, match="b: expected the vocabulary of a, where token"):
        run_recipe(written(tmp_path, text % "union"), tmp_path / "other", locate=locate)
    run_recipe(written(tmp_path, text.replace("tokenizer_source: %s", "")), tmp_path / "unchecked", locate=locate)


def test_arguments_win_over_the_recipe(tmp_path: Path, shop: Callable[..., Locate]) -> None:
    file = written(tmp_path, "method: linear\ninputs: [a, b]\ndtype: bfloat16\n")
    run_recipe(file, tmp_path / "told", locate=shop(), dtype=None)
    run_recipe(file, tmp_path / "flag", locate=shop(), dtype="float16")
    assert merged(tmp_path / "told")["norm.weight"].dtype == torch.bfloat16
    assert merged(tmp_path / "flag")["norm.weight"].dtype == torch.float16


LAYERS = {"1": 28, "6": 24}


FILES = [(file, None) for file in sorted(CONFIGS.glob("[1-6]*.yaml"))]
FILES += [(file, "task_arithmetic") for file, _ in FILES if file.name.startswith("5")]


@pytest.mark.parametrize(("config", "method"), FILES, ids=lambda value: getattr(value, "name", value))
def test_the_files_of_mergekit_users_run(
    tmp_path: Path, shop: Callable[..., Locate], config: Path, method: str | None
) -> None:
    text = config.read_text()
    if method is not None:
        text = text.replace("merge_method: ties", f"merge_method: {method}")
    locate = shop(LAYERS.get(config.name[0], 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        plans = plan_recipe(written(tmp_path, text), tmp_path / "out", locate=locate)
        assert not (tmp_path / "out").exists()
        report = run_recipe(written(tmp_path, text), tmp_path / "out", locate=locate, threads=1)
    assert len(plans) == text.count("\nmerge_method")
    assert report["method"] == plans[-1].rule.method.name
    dtype = {"1": torch.bfloat16, "4": torch.bfloat16, "5": torch.bfloat16}.get(config.name[0], torch.float32)
    assert all(tensor.dtype == dtype for tensor in merged(tmp_path / "out").values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yaml", "models", "out"]
