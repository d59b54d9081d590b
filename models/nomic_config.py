"""The configuration of nomic-embed-text-v2-moe, under the hub's names, with what the native class cannot do refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from models.nomic_type import HUB_TYPE, SAVED_TYPE
from storage.json_file import read_json

NEEDED = (
    *("vocab_size", "type_vocab_size", "n_embd", "n_layer", "n_head", "n_inner", "n_positions"),
    *("num_experts", "moe_top_k", "moe_every_n_layers", "rotary_emb_fraction"),
)
"""Settings that config.json has to give; the others have the defaults of :class:`NomicMoeConfig`."""

# What the hub's code can do and this class cannot; each has to be absent or have the value here.
FIXED: Mapping[str, Any] = MappingProxyType(
    {"activation_function": "gelu", "prenorm": False, "parallel_block": False, "causal": False, "use_rms_norm": None}
    | {"add_pooling_layer": False, "qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True}
    | {"rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None}
    | {"rotary_scaling_factor": None, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    | {"moe_normalize_expert_weights": False, "expert_choice_router": False, "num_shared_experts": 0, "ffn_div": 1}
    | {"moe_resid_pdrop": 0.0}
)


class NomicMoeConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # as all of transformers
    """Sizes of the model under the hub's names, and under those that every transformers model has."""

    model_type = SAVED_TYPE
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    }

    vocab_size: int = 250048
    type_vocab_size: int = 1
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int = 3072
    n_positions: int = 2048
    num_experts: int = 8
    moe_top_k: int = 2
    moe_every_n_layers: int = 2
    rotary_emb_base: float = 10000.0
    rotary_emb_fraction: float = 1.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    embd_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    pad_token_id: int | None = 1

    def has_experts(self, layer: int) -> bool:
        """Whether the layer is a mixture of experts: of every `moe_every_n_layers`, the one after the first."""
        return layer % self.moe_every_n_layers == 1

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written: everything, as the hub's code has other defaults, under a name that transformers does not know."""
        return {**self.to_dict(), "architectures": ["NomicMoeModel"]}


def read_nomic_config(file: Path) -> NomicMoeConfig:
    """Read a config.json of the hub.

    Raises:
        ValueError: no file, another model, a setting that is missing, or one that the native class does not have.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     NomicMoeConfig(n_layer=4).save_pretrained(folder)
        ...     config = read_nomic_config(Path(folder) / "config.json")
        >>> config.num_hidden_layers, [config.has_experts(layer) for layer in range(4)]
        (4, [False, True, False, True])
    """
    if not file.is_file():
        raise ValueError(f"{file}: expected the model's configuration, found no file; fetch the folder again")
    settings = read_json(file)
    if settings.get("model_type") not in (HUB_TYPE, SAVED_TYPE):
        raise ValueError(
            f"{file}: expected model_type {HUB_TYPE}, got {settings.get('model_type')!r}; use load_embedder"
        )
    for name in NEEDED:
        if settings.get(name) is None:
            raise ValueError(f"{file}: expected {name}, found none; take config.json of nomic-embed-text-v2-moe")
    for name, wanted in FIXED.items():
        got = settings.get(name, wanted)
        # None, False and 0 all say that the feature is off.
        if got != wanted and (got or wanted):
            raise ValueError(
                f"{file}: expected {name} {wanted!r}, which embarc's NomicMoeModel has, got {got!r}; "
                "take a repository of Nomic's that has it"
            )
    config = NomicMoeConfig.from_dict({**settings, "model_type": SAVED_TYPE})
    if config.n_embd % (2 * config.n_head):
        raise ValueError(
            f"{file}: expected n_embd in n_head heads of even size, got {config.n_embd} in {config.n_head}; correct it"
        )
    if config.moe_every_n_layers < 2:
        raise ValueError(
            f"{file}: expected moe_every_n_layers of at least 2, got {config.moe_every_n_layers}, which leaves no "
            "layer with experts; correct it"
        )
    if not 1 <= config.moe_top_k <= config.num_experts:
        raise ValueError(
            f"{file}: expected moe_top_k from 1 to num_experts = {config.num_experts}, got {config.moe_top_k}; correct it"
        )
    return config
