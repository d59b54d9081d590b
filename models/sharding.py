"""FSDP2: an embedder whose weights are spread over the ranks, block by block, and the whole weights from it again.

Each rank keeps the rows of every weight that `own_rows` says; a block's weights are gathered while it computes. Every forward
and backward pass, and everything here that gathers, has to be run by all ranks together.

Dimension names: w ranks, n rows of a weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from models.adapter import transformer_of
from models.encoding import modes_kept
from models.lora import block_stack


def shard_blocks(embedder: SentenceTransformer, mesh: DeviceMesh, *, reshard_after_forward: bool = True) -> int:
    """Spread the embedder's weights over the ranks of `mesh` in place: a group a block, one for what is around them.

    A frozen base keeps its precision and the adapter its float32. Dense modules are spread with the transformer's
    embeddings and norms. From here on the embedder itself has to be called, not a module in it, and the optimiser
    has to be made afterwards, as the parameters are other objects.

    Args:
        embedder: with its adapter on it, if it is to have one; weights may be on the meta device.
        mesh: one dimension of w ranks; its device is where the weights go.
        reshard_after_forward: drop a block's gathered weights after its forward pass and gather them again in the
            backward pass: less memory, half as much communication again. If they are kept, they are kept after a
            pass without a backward one too: `free_gathered` before weights are read, saved or put back.

    Returns:
        The number of blocks.

    Raises:
        ValueError: weights in few bits, an embedder that is sharded already, a mesh of several dimensions, trainable
            weights of several precisions in one group, a model without repeated blocks.

    Reference: Zhao et al. (2023), PyTorch FSDP, arXiv:2304.11277.

    Example:
        >>> import tempfile
        >>> import torch.distributed as dist
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> from models.embedder import load_embedder
        >>> embedder = load_embedder("tiny-encoder")
        >>> with tempfile.NamedTemporaryFile() as meeting:
        ...     dist.init_process_group("gloo", init_method=f"file://{meeting.name}", rank=0, world_size=1)
        ...     shard_blocks(embedder, init_device_mesh("cpu", (1,)))
        ...     dist.destroy_process_group()
        5
    """
    _, blocks = block_stack(transformer_of(embedder))
    if mesh.ndim != 1:
        raise ValueError(f"shard_blocks: expected a mesh of one dimension, got {mesh.ndim}; give one of its dimensions")
    if any(isinstance(each, DTensor) for each in embedder.parameters()):
        raise ValueError(
            "shard_blocks: expected whole weights, got weights that are spread already; load the model again"
        )
    _check_precisions([*blocks, embedder])
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    # Before the hooks of FSDP2, which find the tensors of a dict and not those of tokenizers' BatchEncoding: the backward
    # pass would gather nothing again and read freed memory.
    embedder.register_forward_hook(_as_dict)
    # The embedder and not the transformer in it, whose ``forward`` sentence-transformers calls past these hooks. Told to
    # keep what it gathered, it would keep it after `encode` too, and weights that are put back then would be lost.
    fully_shard(embedder, mesh=mesh, reshard_after_forward=True)
    return len(blocks)


def _as_dict(_: nn.Module, __: Any, features: Mapping[str, Any]) -> dict[str, Any]:
    return dict(features)


def _check_precisions(groups: Iterable[nn.Module]) -> None:
    """Refuse what FSDP2 would refuse in the first backward pass, or spread wrongly."""
    for group in groups:
        for name, weight in group.named_parameters():
            if not weight.is_floating_point():
                raise ValueError(
                    f"--strategy fsdp: expected a base in full precision, got {weight.dtype} in {name}; drop "
                    "--lora.quantization, or take --strategy ddp"
                )
        trainable = {weight.dtype for weight in group.parameters() if weight.requires_grad}
        if len(trainable) > 1:
            kinds = " and ".join(sorted(str(each).removeprefix("torch.") for each in trainable))
            raise ValueError(
                f"--strategy fsdp: expected trainable weights of one precision, got {kinds}; take --strategy ddp"
            )


def sharded_copy(
    embedder: SentenceTransformer, mesh: DeviceMesh, *, reshard_after_forward: bool = True
) -> SentenceTransformer:
    """A copy of the embedder with its weights spread by `shard_blocks`; of each weight only this rank's rows are copied.

    Args:
        embedder: whole and the same on every rank, for example in the CPU's memory; left as it is.
        mesh: see `shard_blocks`.
        reshard_after_forward: see `shard_blocks`.

    Raises:
        ValueError: as `shard_blocks`.
    """
    wholes = dict(embedder.named_parameters())
    memo: dict[int, Any] = {
        id(each): nn.Parameter(each.detach().to("meta"), requires_grad=each.requires_grad) for each in wholes.values()
    }
    spread: SentenceTransformer = copy.deepcopy(embedder, memo)
    shard_blocks(spread, mesh, reshard_after_forward=reshard_after_forward)
    materialise(spread, mesh.device_type)
    load_wholes(dict(spread.named_parameters()), wholes)
    first_pass(spread)
    return spread


def materialise(module: nn.Module, device: str | torch.device) -> None:
    """Give every weight on the meta device memory on `device`, its values undefined, and move the others there."""
    place = torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else torch.device(device)

    def placed(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=place) if tensor.is_meta else tensor.to(place)

    module._apply(placed)  # type: ignore[no-untyped-call]


@torch.no_grad()
def first_pass(embedder: SentenceTransformer) -> None:
    """One forward pass of a short text, by which FSDP2 makes the tensors that it gathers into.

    Made by ``encode``, which works in inference mode, they would be of no use for training.
    """
    with modes_kept(embedder):
        embedder.eval()
        features = embedder.preprocess(["1"])
        embedder(
            {name: each.to(embedder.device) if isinstance(each, Tensor) else each for name, each in features.items()}
        )
    free_gathered(embedder)


def free_gathered(embedder: SentenceTransformer) -> None:
    """Leave on this rank its own rows only; the next pass gathers again."""
    for module in embedder.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def own_rows(weight: Tensor) -> slice:
    """The rows of the whole weight that this rank keeps: equal parts, the last ones shorter or empty; all of a plain one.

    Args:
        weight: (n, ...), a parameter of a sharded embedder.
    """
    if not isinstance(weight, DTensor):
        return slice(0, weight.shape[0] if weight.ndim else 1)
    rows, mesh = weight.shape[0], weight.device_mesh
    part = -(-rows // mesh.size())
    first = min(rows, part * mesh.get_local_rank())
    return slice(first, min(rows, first + part))


@torch.no_grad()
def load_wholes(weights: Mapping[str, Tensor], wholes: Mapping[str, Tensor]) -> None:
    """Copy whole weights into those of the same name, spread or not: of a spread one this rank takes its rows."""
    for name, whole in wholes.items():
        weight = weights[name]
        assert whole.shape == weight.shape, f"{name}: {tuple(whole.shape)} is no {tuple(weight.shape)}"
        local_part(weight).copy_(whole[own_rows(weight)] if isinstance(weight, DTensor) else whole)


def local_part(weight: Tensor) -> Tensor:
    """What this rank holds of a weight, in the memory that the weight has."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is spread over the ranks, on every rank, or the tensor itself; all ranks have to ask."""
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    assert isinstance(whole, Tensor)
    return whole
