import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from merging.methods import METHODS, find_method
from merging.options import Options


def test_every_row_is_filed_under_its_name_and_finds_its_functions() -> None:
    assert set(METHODS) >= {
        *("linear", "slerp", "nuslerp", "karcher", "multislerp", "hierarchical_slerp", "sequential_slerp"),
        *("norm_matched", "warp", "task_arithmetic", "model_stock", "ties", "dare_linear", "dare_ties", "della"),
        *("breadcrumbs", "sce", "passthrough"),
    }
    for name, row in METHODS.items():
        assert row.name == name
        assert row.function.__name__ == (row.called or name)
        assert row.compat_function.__name__ == (row.compat or row.called or name)
        assert row.reference
        assert row.summary
        fields = {field.name for field in dataclasses.fields(Options)}
        assert row.takes <= fields | {"t", "weights"}
        assert dict(row.defaults).keys() <= row.takes


def test_an_unknown_method_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ValueError, match=r"--method: .*'slrep'; did you mean slerp"):
        find_method("slrep")
    with pytest.raises(ValueError, match=r"got '\?\?\?'; choose one of them"):
        find_method("???")


def test_the_table_is_shown_without_torch_and_a_merge_needs_no_model_library() -> None:
    code = (
        "import sys; from merging import METHODS; assert 'torch' not in sys.modules; import merging.engine;"
        "bad = {'lightning', 'transformers', 'sentence_transformers', 'peft'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
