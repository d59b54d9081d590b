"""The column ``4-bit``: LoRA over a base in nf4, against the same base with the numbers that its 4 bits stand for."""

from __future__ import annotations

from functools import partial

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from sentence_transformers import SentenceTransformer

from models.embedder import encode
from models.export import save_adapter
from tests.backbones.hub_model import TEXTS, HubModel, adapt, loss_of, train, trains, weights_of
from tests.backbones.refusal import refused


def four_bit(hub: HubModel) -> str:
    """LoRA trains over a base in nf4; the adapter then lies on the base in full precision, and is folded into that."""
    wide = hub.wider(64)
    if hub.row.expert_parameters:
        refused(partial(wide.load, quantization="nf4"), "experts are parameters and no linear layers")
        return "no: the weights of the experts are stacked parameters, not linear layers that bitsandbytes replaces"
    embedder = wide.load(quantization="nf4")
    layers = [each for each in embedder.modules() if isinstance(each, Linear4bit)]
    assert layers
    assert {each.weight.dtype for each in layers} == {torch.uint8}
    whole, before = (encode(each, TEXTS, prompt=hub.prompt) for each in (wide.load(), embedder))
    assert 1e-4 < (1 - torch.cosine_similarity(whole, before)).max() < 0.3
    same_gradients(adapt(embedder, hub.row), adapt(dequantised(wide.load(quantization="nf4")), hub.row))
    train(embedder)
    trains(embedder)
    assert (encode(embedder, TEXTS, prompt=hub.prompt) - before).abs().max() > 1e-3
    stage = save_adapter(embedder, wide.work / "stage", base_name=hub.name, base_folder=wide.folder)
    folded = wide.merged([stage], method="passthrough")
    assert {each.dtype for each in weights_of(folded).values()} == {torch.float32}
    expected = encode(wide.open(stage), TEXTS, prompt=hub.prompt)
    torch.testing.assert_close(encode(wide.open(folded), TEXTS, prompt=hub.prompt), expected, rtol=0, atol=1e-5)
    return "yes"


def dequantised(embedder: SentenceTransformer) -> SentenceTransformer:
    """Ordinary linear layers with the numbers that the 4 bits stand for."""
    for name, layer in list(embedder.named_modules()):
        if isinstance(layer, Linear4bit):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            state = {"weight": dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()}
            plain.load_state_dict(state if layer.bias is None else state | {"bias": layer.bias.data.float()})
            embedder.set_submodule(name, plain)
    return embedder


def same_gradients(embedder: SentenceTransformer, expected: SentenceTransformer) -> None:
    """Of the adapters, as they start: bitsandbytes' kernels for inference would let none through."""
    for each in (embedder, expected):
        loss_of(each).backward()
    wanted = {name: weight.grad for name, weight in expected.named_parameters() if "lora_B" in name}
    largest = max(grad.abs().max() for grad in wanted.values())
    for name, weight in embedder.named_parameters():
        if name in wanted:
            torch.testing.assert_close(weight.grad, wanted[name], rtol=0, atol=1e-4 * largest.item())
