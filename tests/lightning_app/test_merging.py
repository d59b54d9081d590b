"""The merge command: names to folders, sizes, and folders that are not ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_app.config import MergeConfig
from lightning_app.merging import bytes_of, merge
from storage.json_file import read_json


@given(
    number=st.integers(1, 999), unit=st.sampled_from(["", "K", "M", "G", "T"]), tail=st.sampled_from(["", "B", "iB"])
)
def test_sizes(number, unit, tail):
    power = ["", "K", "M", "G", "T"].index(unit)
    assert bytes_of(f"{number}{unit}{tail}") == number * 1024**power


@pytest.mark.parametrize("size", ["", "2 gigs", "-1G", "GiB", "1.2.3M"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match="--memory: expected a size"):
        bytes_of(size)


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
