"""Which base an adapter belongs to: named, recorded, quantised, or another."""

import json

import pytest
import torch
from torch import Tensor

from merging.adapter import base_of, open_adapter
from merging.adapter_base import refuse_foreign_base
from merging.sources import open_model
from tests.merging.conftest import MakeModel


def test_the_base_is_named_by_the_adapter_or_asked_for(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_model("base", tiny)
    monkeypatch.chdir(base.parent)
    assert base_of(make_adapter("relative", "base")) == "base"
    for name, named in (("hub", "organisation/model"), ("none", None)):
        with pytest.raises(ValueError, match=r"local folder, got .*; add --base"):
            base_of(make_adapter(name, named))


def test_an_adapter_of_a_quantised_base_folds_into_the_full_precision_one(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor]
) -> None:
    quantised, full = make_model("quantised", tiny), make_model("full", tiny)
    (quantised / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    adapter = make_adapter("adapter", quantised)
    recorded = {"base": {"path": str(quantised), "fingerprint": "of the quantised weights"}}
    (adapter / "manifest.json").write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match=r"adapter_config\.json: .*quantised; add --base"):
        base_of(adapter)
    with pytest.raises(ValueError, match=r"quantised by bitsandbytes; give the folder of the full-precision model"):
        open_adapter(adapter, open_model(quantised))
    refuse_foreign_base(adapter, full, "of the full ones")
    rows = open_adapter(adapter, open_model(full)).tensors["layers.0.proj.weight"].rows(0, 6)
    assert not torch.equal(rows.float(), tiny["layers.0.proj.weight"])


def test_a_base_with_another_fingerprint_than_the_recorded_one_is_refused(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor]
) -> None:
    base = make_model("base", tiny)
    adapter = make_adapter("adapter", base)
    refuse_foreign_base(adapter, base, "a" * 64)
    (adapter / "manifest.json").write_text(json.dumps({"base": {"fingerprint": "a" * 64}}))
    refuse_foreign_base(adapter, base, "a" * 64)
    with pytest.raises(ValueError, match="expected the base with fingerprint aaaaaaaaaaaa, got .* with bbbbbbbbbbbb"):
        refuse_foreign_base(adapter, base, "b" * 64)
