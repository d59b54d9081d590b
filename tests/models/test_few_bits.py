"""Bytes of packed layers against what bitsandbytes makes of them."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, LlamaModel

from models.few_bits import packed_layers, weight_bytes
from models.quantised import bitsandbytes_config
from tests.models.storages import storage_bytes

SHAPE = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SHAPE, intermediate_size=200, num_key_value_heads=2)
BERT = BertConfig(**SHAPE, intermediate_size=70)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize(("build", "config"), [(LlamaModel, LLAMA), (BertModel, BERT)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_are_those_of_bitsandbytes(kind, build, config, dtype, tmp_path):
    build(config).to(dtype).save_pretrained(tmp_path)
    quantised = AutoModel.from_pretrained(
        tmp_path, dtype="auto", quantization_config=bitsandbytes_config(kind), device_map={"": "cpu"}
    )
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=dtype)
    packed = packed_layers(model)
    assert weight_bytes(model, packed, kind) == storage_bytes(quantised)
    assert packed.keys() == {
        name for name, each in quantised.named_modules() if isinstance(each, Linear4bit | Linear8bitLt)
    }
    assert weight_bytes(model, packed, "none") == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
