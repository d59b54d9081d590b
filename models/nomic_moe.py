"""NomicBert with a mixture of experts: the class of nomic-embed-text-v2-moe, which transformers does not have.

Names in memory are those of the hub's files, so what is loaded, adapted, saved and merged has one set of names.
Nussbaum and Duderstadt (2025), Training Sparse Mixture of Experts Text Embedding Models, arXiv:2502.07972.

Dimension names: n texts, t tokens, d hidden size, h heads, k head size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.nomic_bert.modeling_nomic_bert import apply_rotary_pos_emb, eager_attention_forward

from models.nomic_config import NomicMoeConfig, read_nomic_config
from models.nomic_experts import NomicExpertMLP, NomicExperts, NomicMixture
from storage.json_file import read_json
from storage.tensor_file import read_header, read_tensors


class NomicEmbeddings(nn.Module):
    """Token and type vectors; positions enter in the attention."""

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.n_embd)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.n_embd)

    def forward(self, words: Float[Tensor, "n t d"], types: Int[Tensor, "n t"] | None) -> Float[Tensor, "n t d"]:
        return words + (self.token_type_embeddings.weight[0] if types is None else self.token_type_embeddings(types))


class NomicAttention(nn.Module):
    """Bidirectional attention with rotary positions; Wqkv holds the rows of all queries, then keys, then values."""

    is_causal = False

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.n_embd // config.n_head
        self.Wqkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(
        self,
        states: Float[Tensor, "n t d"],
        mask: Tensor | None,
        rotation: tuple[Float[Tensor, "1 t k"], Float[Tensor, "1 t k"]],
    ) -> Float[Tensor, "n t d"]:
        n, t, d = states.shape
        qkv: Float[Tensor, "3 n h t k"] = self.Wqkv(states).view(n, t, 3, -1, self.head_size).permute(2, 0, 3, 1, 4)
        queries, keys = apply_rotary_pos_emb(qkv[0], qkv[1], *rotation)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attn_pdrop if self.training else 0.0
        mixed, _ = attend(self, queries, keys, qkv[2], mask, dropout=dropout, scaling=self.head_size**-0.5)
        return self.out_proj(mixed.reshape(n, t, d))


class NomicMLP(nn.Module):
    """The dense layer between two mixtures."""

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.n_embd, config.n_inner)
        self.fc2 = nn.Linear(config.n_inner, config.n_embd)

    def forward(self, states: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        return self.fc2(F.gelu(self.fc1(states)))


class NomicMoeBlock(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]  # as all of transformers
    """Attention, then an MLP or a mixture; each is added to its input and the sum is normalised."""

    def __init__(self, config: NomicMoeConfig, layer: int) -> None:
        super().__init__()
        self.attn = NomicAttention(config)
        self.mlp = NomicMixture(config) if config.has_experts(layer) else NomicMLP(config)
        self.norm1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.norm2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self, states: Float[Tensor, "n t d"], mask: Tensor | None, rotation: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "n t d"]:
        states = self.norm1(states + self.dropout(self.attn(states, mask, rotation)))
        return self.norm2(states + self.dropout(self.mlp(states)))


class NomicEncoder(nn.Module):
    """Holds the blocks, under the hub's name."""

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NomicMoeBlock(config, layer) for layer in range(config.n_layer))


class NomicMoeModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """The transformer of nomic-embed-text-v2-moe, from token ids to one state a token; see :func:`load_nomic_moe`."""

    config_class = NomicMoeConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["NomicMoeBlock"]  # noqa: RUF012  # an instance variable of the base class

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__(config)
        self.embeddings = NomicEmbeddings(config)
        self.emb_ln = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.emb_drop = nn.Dropout(config.embd_pdrop)
        self.encoder = NomicEncoder(config)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, NomicExpertMLP):
            init.normal_(module.w1, std=self.config.initializer_range)
            init.normal_(module.w2, std=self.config.initializer_range)
        elif isinstance(module, NomicExperts):
            init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Int[Tensor, "n t"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "n t"] | None = None,
        inputs_embeds: Float[Tensor, "n t d"] | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """States of the last layer, (n, t, d).

        Args:
            input_ids: (n, t); or `inputs_embeds`, the rows of the token embedding.
            attention_mask: (n, t), 1 for tokens and 0 for padding; None for no padding.
            token_type_ids: (n, t); None for zeros.
            return_dict: False for a tuple.
            ignored: what sentence-transformers gives to every model.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`, or states of every layer asked for.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("NomicMoeModel: expected input_ids or inputs_embeds, got both or neither; give one")
        if ignored.get("output_hidden_states") or ignored.get("output_attentions"):
            raise ValueError("NomicMoeModel: expected to give the last states only, got a request for more; leave it")
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        states = self.emb_drop(self.emb_ln(self.embeddings(words, token_type_ids)))
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=states, attention_mask=attention_mask)
        rotation = self._rotation(states)
        for block in self.encoder.layers:
            states = block(states, mask, rotation)
        output = BaseModelOutput(last_hidden_state=states)
        return output.to_tuple() if return_dict is False else output

    def _rotation(self, states: Float[Tensor, "n t d"]) -> tuple[Float[Tensor, "1 t k"], Float[Tensor, "1 t k"]]:
        size = self.config.n_embd // self.config.n_head
        half = torch.arange(0, size, 2, device=states.device, dtype=torch.float32)
        positions = torch.arange(states.shape[1], device=states.device, dtype=torch.float32)
        angles = torch.outer(positions, self.config.rotary_emb_base ** (-half / size)).repeat(1, 2)[None]
        return angles.cos().to(states.dtype), angles.sin().to(states.dtype)


def load_nomic_moe(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> NomicMoeModel:
    """Load a folder that is laid out like nomic-ai/nomic-embed-text-v2-moe, without the hub's code.

    No weight is ever drawn at random: names and shapes are compared with the files' headers before one is read.
    For LoRA the linear layers are ``Wqkv``, ``out_proj``, ``fc1`` and ``fc2``; the experts are PEFT's
    ``target_parameters`` ``mlp.experts.mlp.w1`` and ``mlp.experts.mlp.w2``.

    Args:
        folder: with config.json and model.safetensors, or shards and their index.
        dtype: of the weights; None for the one of the files.
        device: where the weights go.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: a setting that this class does not have, a file or tensor that is missing, one too many, or one
            of another shape; the message names it.

    Example:
        >>> import tempfile
        >>> sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 12, "vocab_size": 16, "num_experts": 4}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     NomicMoeModel(NomicMoeConfig(**sizes)).save_pretrained(folder)
        ...     model = load_nomic_moe(folder)
        >>> model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.shape
        torch.Size([1, 3, 8])
    """
    folder = Path(folder)
    config = read_nomic_config(folder / "config.json")
    with torch.device("meta"):
        model = NomicMoeModel(config)
    files = _weight_files(folder)
    _check_headers(model, files, folder)
    tensors = {name: tensor.to(device, dtype) for file in files for name, tensor in read_tensors(file).items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    config.dtype = model.emb_ln.weight.dtype
    return model.eval()  # type: ignore[no-untyped-call]


def _weight_files(folder: Path) -> list[Path]:
    """The one file, or the shards of the index."""
    if (single := folder / "model.safetensors").is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise ValueError(f"{folder}: expected model.safetensors or its shards and index, found none; fetch the weights")
    return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]


def _check_headers(model: nn.Module, files: list[Path], folder: Path) -> None:
    """Refuse files whose tensors are not exactly the model's."""
    found = {name: (entry.shape, file) for file in files for name, entry in read_header(file).entries.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if missing := sorted(wanted.keys() - found.keys()):
        raise ValueError(
            f"{folder}: expected {len(wanted)} tensors of NomicMoeModel, {len(missing)} missing, first "
            f"{', '.join(missing[:3])}; fetch the weights again (a missing tensor would be random)"
        )
    if extra := sorted(found.keys() - wanted.keys()):
        raise ValueError(
            f"{folder}: expected the {len(wanted)} tensors of NomicMoeModel, got {len(extra)} more, first "
            f"{', '.join(extra[:3])}; the folder holds a model of another architecture"
        )
    for name, shape in wanted.items():
        got, file = found[name]
        if got != shape:
            raise ValueError(
                f"{file}: tensor {name}: expected shape {shape} of config.json, got {got}; check both files"
            )
