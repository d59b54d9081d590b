"""The formulas of Nomic's mixture of experts, one token and one expert at a time, and tiny folders laid out like the hub's.

Transcribed from arXiv:2502.07972 and the published layout of the tensors; nothing of transformers or of the product.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG: dict[str, Any] = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "torch_dtype": "float32",
    "vocab_size": 320,
    "type_vocab_size": 1,
    "n_embd": 16,
    "n_layer": 4,
    "n_head": 2,
    "n_inner": 24,
    "n_positions": 128,
    "pad_token_id": 1,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu",
    "num_experts": 8,
    "moe_top_k": 2,
    "moe_every_n_layers": 2,
    "moe_normalize_expert_weights": False,
    "expert_choice_router": False,
    "num_shared_experts": 0,
    "ffn_div": 1,
    "moe_impl": "megablocks",
    "qkv_proj_bias": True,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "prenorm": False,
    "causal": False,
    "rotary_emb_base": 10000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "use_rms_norm": None,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "add_pooling_layer": False,
}


def random_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Every tensor that the hub's file has, at the sizes of CONFIG; large enough that a wrong formula shows."""
    d, f, e = CONFIG["n_embd"], CONFIG["n_inner"], CONFIG["num_experts"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], d),
        "embeddings.token_type_embeddings.weight": (1, d),
        "emb_ln.weight": (d,),
        "emb_ln.bias": (d,),
    }
    for i in range(CONFIG["n_layer"]):
        layer = {"attn.Wqkv.weight": (3 * d, d), "attn.Wqkv.bias": (3 * d,)}
        layer |= {"attn.out_proj.weight": (d, d), "attn.out_proj.bias": (d,)}
        layer |= {f"norm{k}.{part}": (d,) for k in (1, 2) for part in ("weight", "bias")}
        if i % 2 == 1:
            layer |= {"mlp.router.layer.weight": (e, d), "mlp.experts.bias": (d,)}
            layer |= {"mlp.experts.mlp.w1": (e * f, d), "mlp.experts.mlp.w2": (e * f, d)}
        else:
            layer |= {"mlp.fc1.weight": (f, d), "mlp.fc1.bias": (f,), "mlp.fc2.weight": (d, f), "mlp.fc2.bias": (d,)}
        shapes |= {f"encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    draw = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def write_folder(folder: Path, tensors: dict[str, Tensor] | None = None, **changed: Any) -> Path:
    """A folder with config.json and model.safetensors; a setting changed to `...` is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in {**CONFIG, **changed}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(random_tensors() if tensors is None else tensors, str(folder / "model.safetensors"))
    return folder


def states_of(tensors: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """Last states of one text, (t, d), in float64."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    x = [
        _norm(
            w["embeddings.word_embeddings.weight"][token] + w["embeddings.token_type_embeddings.weight"][0], w, "emb_ln"
        )
        for token in tokens
    ]
    for i in range(CONFIG["n_layer"]):
        layer = {
            n.removeprefix(f"encoder.layers.{i}."): t for n, t in w.items() if n.startswith(f"encoder.layers.{i}.")
        }
        x = [_norm(own + mixed, layer, "norm1") for own, mixed in zip(x, _attention(x, layer), strict=True)]
        feed = _mixture if i % 2 == 1 else _dense
        x = [_norm(own + feed(own, layer), layer, "norm2") for own in x]
    return torch.stack(x)


def _norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _dense(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    return w["mlp.fc2.weight"] @ _gelu(w["mlp.fc1.weight"] @ x + w["mlp.fc1.bias"]) + w["mlp.fc2.bias"]


def _mixture(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    f = CONFIG["n_inner"]
    scores = torch.exp(w["mlp.router.layer.weight"] @ x)
    shares = (scores / scores.sum()).tolist()
    out = w["mlp.experts.bias"].clone()
    for expert in sorted(range(len(shares)), key=lambda k: -shares[k])[:2]:
        rows = slice(expert * f, (expert + 1) * f)
        hidden = _gelu(w["mlp.experts.mlp.w1"][rows] @ x)
        for unit in range(f):
            out += shares[expert] * hidden[unit] * w["mlp.experts.mlp.w2"][rows][unit]
    return out


def _rotate(x: Tensor, position: int) -> Tensor:
    half = len(x) // 2
    out = x.clone()
    for j in range(half):
        angle = position / 10000 ** (2 * j / len(x))
        out[j] = x[j] * math.cos(angle) - x[j + half] * math.sin(angle)
        out[j + half] = x[j + half] * math.cos(angle) + x[j] * math.sin(angle)
    return out


def _attention(x: list[Tensor], w: dict[str, Tensor]) -> list[Tensor]:
    d, h = CONFIG["n_embd"], CONFIG["n_head"]
    k = d // h
    qkv = [w["attn.Wqkv.weight"] @ each + w["attn.Wqkv.bias"] for each in x]
    out = []
    for i in range(len(x)):
        heads = []
        for head in range(h):
            query = _rotate(qkv[i][head * k : (head + 1) * k], i)
            keys = [_rotate(qkv[j][d + head * k : d + (head + 1) * k], j) for j in range(len(x))]
            weights = torch.softmax(torch.stack([query @ key / math.sqrt(k) for key in keys]), dim=0)
            values = [qkv[j][2 * d + head * k : 2 * d + (head + 1) * k] for j in range(len(x))]
            heads.append(sum((weight * value for weight, value in zip(weights, values, strict=True)), torch.zeros(k)))
        out.append(w["attn.out_proj.weight"] @ torch.cat(heads).double() + w["attn.out_proj.bias"])
    return out
