"""The merge command: names to folders, flags that exclude each other, and folders that are not ours."""

import pytest

from lightning_app.config import MergeConfig
from lightning_app.merging import merge
from lightning_app.plan_text import size_text
from storage.json_file import read_json


def test_a_backbones_name_is_an_input(tmp_path):
    config = MergeConfig(method="linear", inputs=("tiny-llm", "tiny-llm"), output=str(tmp_path / "out"))
    assert merge(config)["copied_unchanged"] == merge(MergeConfig(**config.to_dict() | {"overwrite": True}))["tensors"]
    assert read_json(tmp_path / "out" / "merge.json")["method"] == "linear"


def test_overwrite_replaces_merges_only(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    config = MergeConfig(
        method="linear", inputs=("tiny-llm", "tiny-llm"), output=str(tmp_path / "thesis"), overwrite=True
    )
    with pytest.raises(ValueError, match=r"expected an earlier merge \(merge\.json\)"):
        merge(config)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": None}, "--method: expected a method or --recipe FILE, got neither"),
        ({"recipe": "r.yaml"}, "--inputs: expected it to stand in the recipe"),
        ({"recipe": "r.yaml", "method": None, "inputs": (), "granularity": "row"}, "--granularity: .* beside --recipe"),
        ({"recipe": "r.yaml", "method": None, "inputs": (), "dtype": "bfloat16"}, "--dtype: .* beside --recipe"),
        ({"adapter": True, "granularity": "row"}, "--granularity: .* got 'row' beside --adapter"),
        ({"adapter": True, "shard_size": "1GB"}, "--shard-size: .* beside --adapter"),
        ({"retention": 0.5}, "--retention: expected --search beside it"),
        ({"inputs": ()}, "--inputs: expected the models to merge, got none"),
        ({"rank": 4}, "--rank: expected --adapter beside it"),
        ({"ema": 0.9, "t": 0.5}, "--ema: expected neither --weights nor --t"),
        ({"ema": 1.0}, r"--ema: expected a decay in \[0, 1\), got 1.0"),
        ({"adapter": True, "search": "silhouette"}, "--adapter: expected no --search"),
        ({"adapter": True, "plan": True}, "--plan: expected a merge of whole models"),
        ({"memory": "much"}, "--memory: expected a size"),
        ({"shard_size": "0"}, "--shard-size: expected a positive number"),
        ({"threads": 0}, "--threads: expected at least 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, asked, message):
    given = {"method": "linear", "inputs": ("tiny-llm", "tiny-llm"), "output": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=message):
        merge(MergeConfig(**given | asked))
    assert not list(tmp_path.iterdir())


def test_the_plan_is_printed_and_nothing_is_written(tmp_path, capsys):
    config = MergeConfig(method="slerp", inputs=("tiny-llm", "tiny-llm"), output=str(tmp_path / "out"), plan=True)
    plan = merge(config)
    printed = capsys.readouterr().out
    assert "slerp on the weights themselves, one angle a tensor; defaults" in printed
    assert f"write    {size_text(plan['bytes_written'])} to {tmp_path / 'out'}" in printed
    assert printed.endswith("Nothing was written.\n")
    assert plan["bytes_written"] == sum(plan["files"].values())
    assert plan["bytes_read"] == 2 * plan["bytes_written"] or plan["bytes_read"] == plan["bytes_written"]
    assert "tokenizer.json" in plan["companions"]
    assert not (tmp_path / "out").exists()


def test_a_moving_average_is_weights_of_linear(tmp_path):
    config = MergeConfig(method="linear", inputs=("tiny-llm",) * 3, output=str(tmp_path / "out"), ema=0.5)
    merge(config)
    average, share = None, 0.5
    for place in range(3):
        one_hot = [float(place == i) for i in range(3)]
        average = (
            one_hot if average is None else [share * a + (1 - share) * x for a, x in zip(average, one_hot, strict=True)]
        )
    assert read_json(tmp_path / "out" / "merge.json")["parameters"]["weights"] == average
