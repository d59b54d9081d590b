"""Merging adapters: against PEFT in float64 and dense mathematics, and every mistake that is refused."""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging import METHODS, merge_checkpoints
from merging.adapter import open_adapter
from merging.lora_space import merge_adapters
from merging.sources import open_model
from storage.manifest import fingerprint, verify_manifest
from storage.tensor_file import read_tensors
from tests.merging import oracle
from tests.merging.conftest import MakeModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODULE = "encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=13, **size))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("bert") / "base"
    model.save_pretrained(folder)
    return folder


Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """``train(seed, **LoraConfig)`` gives an adapter of ``bert`` in which everything trainable was moved."""
    root, known = tmp_path_factory.mktemp("adapters"), dict[str, Path]()

    def run(seed: int, **settings: Any) -> Path:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel

        key = repr((seed, settings))
        if key not in known:
            torch.manual_seed(seed)
            plain = {"r": 3, "lora_alpha": 8, "target_modules": ["query", "output.dense"]}
            model = get_peft_model(AutoModel.from_pretrained(bert), LoraConfig(**plain | settings))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.2 * torch.randn_like(parameter)
            known[key] = root / str(len(known))
            model.save_pretrained(known[key])
        return known[key]

    return run


@cache
def deltas(base: Path, adapter: Path) -> dict[str, Tensor]:
    """What PEFT makes of the base with the adapter, in float64, less the base."""
    from peft import PeftModel
    from transformers import AutoModel

    model = AutoModel.from_pretrained(base).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = PeftModel.from_pretrained(model, str(adapter)).double().merge_and_unload().state_dict()
    assert after.keys() == before.keys()
    return {name: after[name] - before[name] for name in after if after[name].is_floating_point()}


Merge = Callable[[Sequence[Tensor]], Tensor]


def assert_equal_to_the_dense_merge(base: Path, inputs: Sequence[Path], output: Path, merge: Merge) -> None:
    """Compare with the method on dense differences; an all-zero input leaves the linear merge, as the policies say."""
    each = [deltas(base, path) for path in inputs]
    got = deltas(base, output)
    for name in got:
        expected = merge([delta[name] for delta in each])
        if not expected.any():
            assert float(got[name].norm()) <= 1e-6, name
        else:
            assert oracle.relative_error(got[name], expected) < 1e-5, name


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {}),
    "rslora": ({"use_rslora": True}, {"use_rslora": True, "r": 5}),
    "one_rslora": ({"use_rslora": True}, {"lora_alpha": 3}),
    "patterns": ({"rank_pattern": {"query": 5}, "alpha_pattern": {"output.dense": 32}}, {"rank_pattern": {"query": 1}}),
    "lora_bias": ({"lora_bias": True}, {"lora_bias": True, "lora_alpha": 5}),
    "one_lora_bias": ({"lora_bias": True}, {}),
    "bias_all": ({"bias": "all"}, {"bias": "all"}),
    "bias_mixed": ({"bias": "all"}, {"bias": "lora_only"}),
    "bias_and_lora_bias": ({"bias": "lora_only"}, {"lora_bias": True}),
    "modules_to_save": ({"modules_to_save": ["pooler"]}, {"modules_to_save": ["pooler", "key"]}),
    "dora": ({"use_dora": True}, {"use_dora": True, "r": 2}),
    "dora_rslora": ({"use_dora": True, "use_rslora": True}, {"use_dora": True}),
    "one_dora": ({"use_dora": True}, {}),
    "dora_bias_saved": ({"use_dora": True, "bias": "all", "modules_to_save": ["pooler"]}, {"use_dora": True}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_merging_adapters_is_merging_the_folded_models(
    bert: Path, train: Train, tmp_path: Path, kind: str, method: str
) -> None:
    inputs = [train(seed, **settings) for seed, settings in enumerate(KINDS[kind])]
    told: dict[str, Any] = {"weights": [1, 3]} if method == "linear" else {"t": 0.75}
    report = merge_adapters(inputs, tmp_path / "out", method=method, **told)

    def expected(vectors: Sequence[Tensor]) -> Tensor:
        if method == "linear" or not all(vector.any() for vector in vectors):
            return oracle.linear(vectors, [0.25, 0.75])
        return oracle.slerp(vectors[0], vectors[1], 0.75)

    assert_equal_to_the_dense_merge(bert, inputs, tmp_path / "out", expected)
    assert report["summary"]["recompression_error"] == 0
    assert report["method"] == method
    verify_manifest(tmp_path / "out")
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["use_rslora"] is False
    assert config["r"] == config["lora_alpha"]
    assert config["base_model_name_or_path"] == str(bert)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.kind == "coefficients"])
def test_every_method_gives_what_it_gives_on_whole_models(
    bert: Path, train: Train, tmp_path: Path, method: str
) -> None:
    inputs = [train(0, lora_bias=True), train(1, lora_bias=True)][: METHODS[method].maximum or 2]
    merge_adapters(inputs, tmp_path / "adapter", method=method)
    merge_checkpoints(inputs, tmp_path / "model", method=method, space="task_vector")
    before = read_tensors(bert / "model.safetensors")
    expected = read_tensors(tmp_path / "model" / "model.safetensors")
    got = open_adapter(tmp_path / "adapter", open_model(bert)).tensors
    assert expected.keys() == got.keys()
    moved = 0
    for name, tensor in expected.items():
        change = float((tensor - before[name]).norm())
        after = got[name].rows(0, len(tensor)).reshape(tensor.shape)
        assert float((after - tensor).norm()) <= 1e-5 * change + 2e-7 * float(tensor.norm())
        moved += change > 0
    assert moved == 6


@pytest.mark.parametrize("dora", [False, True])
def test_a_spherical_mean_of_three(bert: Path, train: Train, tmp_path: Path, dora: bool) -> None:
    inputs = [train(seed, use_dora=dora, r=seed + 1) for seed in range(3)]
    report = merge_adapters(inputs, tmp_path / "out", method="karcher", weights=[1, 2, 1])

    def expected(vectors: Sequence[Tensor]) -> Tensor:
        return oracle.karcher(vectors, [0.25, 0.5, 0.25]) if vectors[0].any() else vectors[0]

    assert_equal_to_the_dense_merge(bert, inputs, tmp_path / "out", expected)
    row = report["tensors"][f"{MODULE}.weight"]
    assert row["rank_in"] == [1, 2, 3]
    assert row["rank_out"] == 6
    each = [deltas(bert, path)[f"{MODULE}.weight"] for path in inputs]
    assert row["norms"] == pytest.approx([float(delta.norm()) for delta in each], rel=1e-5)
    angles = [oracle.angle_between(each[i], each[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert torch.tensor(row["angles_degrees"]).deg2rad().tolist() == pytest.approx(angles, rel=1e-5)
    assert sum(report["summary"]["dominance"]) == pytest.approx(1)


@pytest.mark.parametrize("dora", [False, True])
def test_weights_that_do_not_sum_to_one(bert: Path, train: Train, tmp_path: Path, dora: bool) -> None:
    inputs = [train(seed, use_dora=dora) for seed in range(2)]
    merge_adapters(inputs, tmp_path / "out", method="task_arithmetic", weights=[0.6, -0.25], scale=1.5)
    assert_equal_to_the_dense_merge(bert, inputs, tmp_path / "out", lambda each: oracle.linear(each, [0.9, -0.375]))


def test_modules_that_only_some_adapters_have(bert: Path, train: Train, tmp_path: Path) -> None:
    inputs = [train(0, target_modules=["query", "key"]), train(1, target_modules=["key", "value"])]
    report = merge_adapters(inputs, tmp_path / "out", method="slerp", t=0.25)

    def expected(each: Sequence[Tensor]) -> Tensor:
        both = all(vector.any() for vector in each)
        return oracle.slerp(each[0], each[1], 0.25) if both else oracle.linear(each, [0.75, 0.25])

    assert_equal_to_the_dense_merge(bert, inputs, tmp_path / "out", expected)
    row = report["tensors"][f"{MODULE}.weight"]
    assert (row["rank_in"], row["rank_out"], row["angles_degrees"]) == ([3, 0], 3, [None])
    targets = json.loads((tmp_path / "out" / CONFIG).read_text())["target_modules"]
    assert targets == [f"encoder.layer.0.attention.self.{name}" for name in ("key", "query", "value")]


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "r": 5}, {"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["pooler"]}],
)
@pytest.mark.parametrize("method", ["linear", "slerp", "karcher", "model_stock"])
def test_merging_an_adapter_with_itself_gives_it_back(
    train: Train, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    one = train(0, **settings)
    told: dict[str, Any] = {"slerp": {"t": 0.3}, "model_stock": {}}.get(method, {"weights": [0.3, 0.7]})
    merge_adapters([one, one], tmp_path / "out", method=method, **told)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (one / WEIGHTS).read_bytes()
    assert (tmp_path / "out" / CONFIG).read_bytes() == (one / CONFIG).read_bytes()


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_twice_does_not_double_its_rank(bert: Path, train: Train, tmp_path: Path, dora: bool) -> None:
    inputs = [train(0, use_dora=dora)] * 2 + [train(1, use_dora=dora, r=2)]
    report = merge_adapters(inputs, tmp_path / "out", method="linear", weights=[1, 2, 2])
    assert {row.get("rank_out", 5) for row in report["tensors"].values()} == {5}
    assert_equal_to_the_dense_merge(bert, inputs, tmp_path / "out", lambda each: oracle.linear(each, [0.2, 0.4, 0.4]))


def test_an_input_without_weight_leaves_no_factors(bert: Path, train: Train, tmp_path: Path) -> None:
    inputs = [train(0), train(1, target_modules=["query", "value"])]
    report = merge_adapters(inputs, tmp_path / "out", method="slerp", t=0)
    value = "encoder.layer.0.attention.self.value.weight"
    assert report["tensors"][f"{MODULE}.weight"]["rank_out"] == 3
    assert report["tensors"][value]["rank_out"] == 1
    assert report["tensors"][value]["recompression_error"] is None
    assert_equal_to_the_dense_merge(bert, inputs, tmp_path / "out", lambda each: each[0])


def test_both_ends_of_an_arc_and_beyond(bert: Path, train: Train, tmp_path: Path) -> None:
    inputs = [train(0), train(1)]
    with pytest.raises(ValueError, match=r"--t.*\[0, 1\], got 1.5.*--extrapolate"):
        merge_adapters(inputs, tmp_path / "out", method="slerp", t=1.5)
    merge_adapters(inputs, tmp_path / "out", method="slerp", t=1.5, extrapolate=True)

    def expected(each: Sequence[Tensor]) -> Tensor:
        return oracle.slerp(each[0], each[1], 1.5) if each[0].any() else each[0]

    assert_equal_to_the_dense_merge(bert, inputs, tmp_path / "out", expected)


@pytest.mark.parametrize("dora", [False, True])
def test_recompression_is_the_best_there_is_and_says_what_it_lost(
    bert: Path, train: Train, tmp_path: Path, dora: bool
) -> None:
    inputs = [train(seed, use_dora=dora) for seed in range(2)]
    report = merge_adapters(inputs, tmp_path / "out", method="linear", rank=2)
    each = [deltas(bert, path) for path in inputs]
    got = deltas(bert, tmp_path / "out")
    lost = total = 0.0
    for name, row in report["tensors"].items():
        expected = (each[0][name] + each[1][name]) / 2
        # For DoRA the rows of the base are scaled exactly; what is compressed is the rest.
        rest = expected if not dora else expected - scaled_base(bert, inputs, name, expected.shape)
        cut = float(torch.linalg.svdvals(rest)[2:].norm())
        assert row["rank_out"] == 2
        assert row["recompression_error"] == pytest.approx(cut / float(expected.norm()), rel=1e-4)
        assert float((got[name] - expected).norm()) == pytest.approx(cut, rel=1e-4)
        lost, total = lost + cut**2, total + float(expected.norm()) ** 2
    assert report["summary"]["recompression_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert report["summary"]["rank"] == 2


def scaled_base(base: Path, inputs: Sequence[Path], name: str, shape: torch.Size) -> Tensor:
    """(s - 1) W0 for an average: the part of a DoRA merge that is no update."""
    weight = read_tensors(base / "model.safetensors")[name].double()
    s = torch.zeros(shape[0], dtype=torch.float64)
    for path in inputs:
        key = "base_model.model." + name.removesuffix(".weight")
        stored = {part: value.double() for part, value in read_tensors(path / WEIGHTS).items()}
        product = stored[f"{key}.lora_B.weight"] @ stored[f"{key}.lora_A.weight"] * 8 / 3
        s += stored[f"{key}.lora_magnitude_vector"] / (weight + product).norm(dim=1) / len(inputs)
    return (s - 1).unsqueeze(1) * weight


def test_a_rank_that_leaves_nothing_out_keeps_the_factors(train: Train, tmp_path: Path) -> None:
    inputs = [train(0), train(1, r=2)]
    exact = merge_adapters(inputs, tmp_path / "exact", method="linear")
    roomy = merge_adapters(inputs, tmp_path / "roomy", method="linear", rank=5)
    assert (tmp_path / "exact" / WEIGHTS).read_bytes() == (tmp_path / "roomy" / WEIGHTS).read_bytes()
    assert exact["summary"] == roomy["summary"]


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_bias": True}, {"bias": "all"}])
def test_a_method_on_elements_is_the_dense_one_recompressed(
    bert: Path, train: Train, tmp_path: Path, settings: dict[str, Any]
) -> None:
    inputs = [train(0, **settings), train(1, **settings | {"r": 4})]
    # TIES at density 1: elect the sign of the sum, average those that agree.
    report = merge_adapters(inputs, tmp_path / "out", method="ties", density=[1.0, 1.0])

    def ties(vectors: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(vectors))
        agree = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
        return torch.where(agree, stacked, 0.0).sum(0) / agree.sum(0).clamp(min=1)

    each = [deltas(bert, path) for path in inputs]
    got = deltas(bert, tmp_path / "out")
    for name, row in report["tensors"].items():
        expected = ties([delta[name] for delta in each])
        cut = 0.0 if expected.ndim == 1 else float(torch.linalg.svdvals(expected)[4:].norm())
        assert float((got[name] - expected).norm()) == pytest.approx(cut, rel=1e-4, abs=1e-5)
        assert row.get("recompression_error", 0.0) == pytest.approx(cut / float(expected.norm()), rel=1e-4)
        assert "coefficients" not in row
    assert report["summary"]["dominance"] is None
    assert report["summary"]["recompression_error"] > 0


def test_random_masks_follow_the_seed(train: Train, tmp_path: Path) -> None:
    inputs = [train(0), train(1)]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        merge_adapters(inputs, tmp_path / name, method="dare_linear", density=0.5, seed=seed)
    a, b, c = ((tmp_path / name / WEIGHTS).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_base_that_stores_its_weights_transposed(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    base = tmp_path / "base"
    GPT2Model(GPT2Config(vocab_size=13, n_embd=16, n_layer=1, n_head=2, n_positions=8)).save_pretrained(base)
    inputs = [tmp_path / "a", tmp_path / "b"]
    for path in inputs:
        config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        model = get_peft_model(GPT2Model.from_pretrained(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(path)
    merge_adapters(inputs, tmp_path / "out", method="linear")
    assert_equal_to_the_dense_merge(base, inputs, tmp_path / "out", lambda each: oracle.linear(each, [0.5, 0.5]))


def test_the_report_describes_the_merge(bert: Path, train: Train, tmp_path: Path) -> None:
    inputs = [train(0), train(1)]
    seen: list[tuple[int, int]] = []
    report = merge_adapters(
        inputs, tmp_path / "out", method="slerp", t=0.25, base=bert, progress=lambda *at: seen.append(at)
    )
    assert json.loads((tmp_path / "out" / "merge.json").read_text()) == report
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [row["path"] for row in report["inputs"]] == [str(path) for path in inputs]
    assert [row["rank"] for row in report["inputs"]] == [3, 3]
    assert report["base"] == {"path": str(bert), "fingerprint": fingerprint(bert)}
    assert report["parameters"]["t"] == 0.25
    assert 0 < report["summary"]["distance_to_linear"] < report["summary"]["distance_to_soup"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["kind"] == "merge"
    assert manifest["base"] == report["base"]
    assert "PeftModel" in (tmp_path / "out" / "README.md").read_text()


def test_what_training_recorded_of_the_base_is_passed_on(train: Train, tmp_path: Path) -> None:
    inputs = [shutil.copytree(train(seed), tmp_path / str(seed)) for seed in range(2)]
    recorded = {"name": "all-minilm", "path": "/models/all-minilm", "revision": None, "fingerprint": "a" * 64}
    for path in inputs:
        (path / "manifest.json").write_text(json.dumps({"files": {}, "base": recorded}))
    merge_adapters(inputs, tmp_path / "out", method="linear")
    assert verify_manifest(tmp_path / "out")["base"] == recorded


@pytest.mark.parametrize("first", [0, 1])
def test_one_input_without_its_causal_mask_decides_for_the_result(first: int, train: Train, tmp_path: Path) -> None:
    """In either order, as in a merge of whole models; the card does not say that plain PEFT loads it."""
    inputs = [shutil.copytree(train(seed), tmp_path / str(seed)) for seed in range(2)]
    plain = {"name": "base", "path": "/models/base", "fingerprint": "a" * 64, "bidirectional": False}
    removed = plain | {"bidirectional": True, "plain_peft": {"loads": False, "reason": "the causal mask is removed"}}
    for path, recorded in zip(inputs, (plain, removed), strict=True):
        (path / "manifest.json").write_text(json.dumps({"files": {}, "base": recorded}))
    merge_adapters([inputs[first], inputs[1 - first]], tmp_path / "out", method="linear")
    assert verify_manifest(tmp_path / "out")["base"] == removed
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Only embarc loads this adapter as its inputs were trained: the causal mask is removed." in card
    assert "library_name: peft" in card
    assert "PeftModel" not in card


def test_ranks_that_differ_are_patterns_that_name_their_module_only(make_adapter: MakeModel, tmp_path: Path) -> None:
    modules = ["proj", "layers.0.proj", "layers.1.proj", "layers.2.proj"]
    ranks = {"layers.0.proj": 3, "proj": 2}
    tensors = {}
    for module in modules:
        rank = ranks.get(module, 1)
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, 4)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(4, rank)
    patterns = {"rank_pattern": {"layers.0.proj": 3, "layers.1.proj": 1, "layers.2.proj": 1, "proj": 2}}
    inputs = [make_adapter("a", "hub/model", tensors=tensors, rank=1, **patterns)]
    inputs.append(make_adapter("b", "hub/model", modules=modules, rank=1, shape=(4, 4)))
    merge_adapters(inputs, tmp_path / "out", method="linear")
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] == 2
    assert list(config["rank_pattern"].items()) == [(r"layers\.0\.proj", 4), ("proj", 3)]
    assert config["alpha_pattern"] == config["rank_pattern"]
