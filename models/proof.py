"""Proofs that an embedder is what its folder and its row of BACKBONES say: tensors, pooling, sizes, end token."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from models.adapter import transformer_of
from models.attention import config_of
from models.backbones import Backbone
from models.origin import transformer_folder
from storage.json_file import read_json
from storage.tensor_file import read_header

# Computed by the model and not read from a file, though older files hold them.
COMPUTED = (".inv_freq", ".position_ids")
# Names that very old checkpoints have for the two tensors of a layer norm.
OLD_NORM = ((".gamma", ".weight"), (".beta", ".bias"))


def check_tensors(embedder: SentenceTransformer, folder: Path, *, strict: bool = True) -> None:
    """Refuse a transformer of which a tensor is not in the folder's files; transformers would draw it at random.

    Args:
        embedder: loaded from the folder, without an adapter of its own.
        folder: of the embedder; its weights lie where modules.json says.
        strict: refuse also a tensor of the files that the model has no place for, heads excepted.

    Raises:
        ValueError: names the folder and the first tensors.
    """
    folder = transformer_folder(folder)
    model = transformer_of(embedder)
    files = _weight_files(folder)
    if not isinstance(model, PreTrainedModel) or not files or (folder / "adapter_config.json").is_file():
        return
    prefix = model.base_model_prefix + "."
    stored = {_plain(name, prefix) for file in files for name in read_header(file).entries}
    own = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    # Without the scales that bitsandbytes puts beside a quantised weight.
    state = {name: tensor for name, tensor in model.state_dict().items() if name in own}
    # Names as on disk, which may hold several tensors in one; on the meta device nothing is computed.
    names = revert_weight_conversion(model, {name: tensor.to("meta") for name, tensor in state.items()})
    expected = {_plain(name, prefix) for name in names}
    shared = _sharing_names(state)
    missing = {name for name in expected - stored if not shared.get(name, set()) & stored}
    if missing:
        raise ValueError(
            f"{folder}: expected {len(expected)} tensors of {type(model).__name__}, {len(missing)} missing, first "
            f"{_first(missing)}; fetch the weights again (a missing tensor would be random)"
        )
    parts = {name.split(".")[0] for name in expected}
    unexpected = {name for name in stored - expected if name.split(".")[0] in parts and not name.endswith(COMPUTED)}
    if strict and unexpected:
        raise ValueError(
            f"{folder}: expected the {len(expected)} tensors of {type(model).__name__}, got {len(unexpected)} more, "
            f"first {_first(unexpected)}; the folder holds a model of another architecture"
        )


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads: one, or the shards of its index."""
    if (single := folder / "model.safetensors").is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))] if index.is_file() else []


def _plain(name: str, prefix: str) -> str:
    for old, new in OLD_NORM:
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name.removeprefix(prefix)


def _sharing_names(state: dict[str, torch.Tensor]) -> dict[str, set[str]]:
    """For each name the names of the same memory; of tied tensors only one is written."""
    names: dict[tuple[int, torch.Size], set[str]] = {}
    for name, tensor in state.items():
        if tensor.device.type != "meta" and tensor.numel():
            names.setdefault((tensor.data_ptr(), tensor.shape), set()).add(name)
    return {name: group for group in names.values() for name in group}


def _first(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3])


def check_finite_weights(embedder: torch.nn.Module, *, source: str = "embedder") -> None:
    """Refuse NaN and infinite weights, buffers included; quantised weights are whole numbers, their scales are not read.

    Raises:
        ValueError: names the first tensors that hold one.
    """
    broken = [
        name
        for name, tensor in (*embedder.named_parameters(), *embedder.named_buffers())
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise ValueError(f"{source}: expected finite weights, got NaN or infinity in {shown}; restore the weights")


def check_modules(embedder: SentenceTransformer, row: Backbone, *, source: str) -> None:
    """Refuse pooling or normalisation other than the row's, and modules whose sizes do not follow from each other.

    Raises:
        ValueError: names the row and the folder.
    """
    pooling = [module for module in embedder if isinstance(module, Pooling)]
    found = ", ".join(str(module.pooling_mode) for module in pooling) or "none"
    if found != row.pooling:
        raise ValueError(
            f"backbone {row.name}: expected {row.pooling} pooling (BACKBONES), got {found} from {source}; "
            "check its 1_Pooling/config.json, or load the folder by its path"
        )
    normalizes = any(isinstance(module, Normalize) for module in embedder)
    if normalizes != row.normalize:
        wanted, got = ("a Normalize module", "none") if row.normalize else ("no Normalize module", "one")
        raise ValueError(
            f"backbone {row.name}: expected {wanted} (BACKBONES), got {got} from {source}; "
            "check its modules.json, or load the folder by its path"
        )
    width = config_of(embedder).hidden_size
    for module in embedder:
        if isinstance(module, Pooling):
            given = module.embedding_dimension
        elif isinstance(module, Dense):
            given = module.in_features
        else:
            continue
        if given != width:
            raise ValueError(
                f"backbone {row.name}: expected a {type(module).__name__} module of width {width}, which is what its "
                f"transformer gives in {source}, got {given}; check config.json of that module"
            )
        if isinstance(module, Dense):
            width = module.out_features


def check_dimension(embedder: SentenceTransformer, row: Backbone, *, source: str) -> None:
    """Refuse embeddings of another length than the row's; built-in models are proved by the tests that made them.

    Raises:
        ValueError: names the row, the folder and both lengths.
    """
    found = embedder.get_embedding_dimension()
    if row.repo_id is not None and found != row.dimension:
        raise ValueError(
            f"backbone {row.name}: expected embeddings of {row.dimension} components (BACKBONES), got {found} from "
            f"{source}; fetch that repository again, or load another model from a folder of its own"
        )


def check_last_token(embedder: SentenceTransformer, row: Backbone, *, source: str) -> None:
    """Refuse a tokenizer that does not end a text with the token whose state is the embedding.

    Raises:
        ValueError: names the row, the folder and both tokens.
    """
    if row.pooling != "lasttoken":
        return
    tokenizer = embedder.tokenizer
    wanted = row.end_token or tokenizer.eos_token
    last = tokenizer.convert_ids_to_tokens(tokenizer("1")["input_ids"][-1])
    if last != wanted:
        raise ValueError(
            f"backbone {row.name}: expected every text to end with {wanted!r}, whose state is the embedding "
            f"(BACKBONES), got {last!r} from the tokenizer in {source}; restore its tokenizer.json"
        )
