"""load_sharded: a model whose weights go from the files to the ranks by rows, so that no process ever holds all of it.

Dimension names: w ranks, n rows of a weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from models.adapter import transformer_of
from models.attention import check_attention
from models.backbones import lookup_backbone
from models.empty_transformer import on_meta
from models.encoding import modes_kept
from models.loading import LoadOptions, load_folder
from models.locate import base_folder
from models.origin import row_by_code, row_by_hub_id, transformer_folder
from models.revision import split_revision
from models.sharding import first_pass, free_gathered, load_wholes, local_part, materialise, own_rows, shard_blocks
from models.weight_files import WeightFiles

Adapt = Callable[[SentenceTransformer], object]


def load_sharded(
    name_or_path: str | Path,
    mesh: DeviceMesh,
    *,
    adapt: Adapt | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    cache: str | Path | None = None,
    offline: bool = False,
    bidirectional: bool = False,
    reshard_after_forward: bool = True,
) -> SentenceTransformer:
    """Load an embedder spread over the ranks of `mesh` as `shard_blocks` spreads one that is whole.

    The transformer is built without weights. Each rank then reads its own rows of every tensor; one that transformers
    cuts or joins while loading (GTE's fused projections) is read whole, one at a time. It is proved that every weight
    is read, finite and of the right shape, and all else that ``load_embedder`` proves.

    Args:
        name_or_path: a name of BACKBONES, a folder, or a hub id, as in ``load_embedder``; no adapter folder.
        mesh: one dimension of w ranks; its device is where the weights go. All ranks have to call.
        adapt: puts an adapter on the embedder before it is spread, for example ``partial(add_lora, r=16)``; it must
            not read the base's weights, which are not there yet.
        dtype: precision of the weights; None keeps the folder's.
        revision: branch, tag or commit of a hub model.
        cache: the hub's cache folder.
        offline: read the cache only.
        bidirectional: remove the causal mask of a decoder that was trained with one.
        reshard_after_forward: see `shard_blocks`.

    Returns:
        The embedder in evaluation mode; from here on all ranks have to call it together.

    Raises:
        ValueError: a model without files, an adapter folder, a model with code of its own, DoRA, a tensor that is
            missing, of another shape or not finite; and as ``load_embedder`` and `shard_blocks`.

    Example:
        >>> import tempfile
        >>> import torch.distributed as dist
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> with tempfile.NamedTemporaryFile() as meeting:
        ...     dist.init_process_group("gloo", init_method=f"file://{meeting.name}", rank=0, world_size=1)
        ...     embedder = load_sharded("tiny-llm", init_device_mesh("cpu", (1,)))
        ...     shape = embedder.encode(["1, 2, 3"]).shape
        ...     dist.destroy_process_group()
        >>> shape
        (1, 128)
    """
    name, revision = split_revision(str(name_or_path), revision)
    row = lookup_backbone(name)
    if row is not None and row.from_scratch:
        raise ValueError(
            f"backbone {row.name}: expected a model with files, got one that is drawn from its seed; it is small: use "
            "load_embedder and shard_blocks"
        )
    folder = base_folder(name, revision=revision, cache=cache, offline=offline)
    if (folder / "adapter_config.json").is_file() and not (folder / "modules.json").is_file():
        raise ValueError(f"{folder}: expected a base, got an adapter folder; load its base and attach it by `adapt`")
    row = row or row_by_hub_id(folder)
    embedder = load_folder(folder, row, LoadOptions(dtype=dtype, bidirectional=bidirectional, weights=False))
    model = transformer_of(embedder)
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"{folder}: expected a model of transformers, got {type(model).__name__}; use load_embedder")
    files = WeightFiles(transformer_folder(folder))
    plan = plan_reading(model, files)
    # The objects of the base's weights change below, their places in these modules do not, whatever is wrapped around.
    places = _places(model)
    if adapt is not None:
        adapt(embedder)
        if any("lora_magnitude_vector" in each for each, _ in embedder.named_parameters()):
            raise ValueError(
                "load_sharded: expected LoRA without DoRA, whose lengths are measured on whole weights, got DoRA; use "
                "load_embedder and shard_blocks"
            )
    on_meta(embedder)
    shard_blocks(embedder, mesh, reshard_after_forward=reshard_after_forward)
    materialise(embedder, mesh.device_type)
    plan.read({name: getattr(module, last) for name, (module, last) in places.items()})
    embedder.eval()
    first_pass(embedder)
    guide = row or row_by_code(folder)
    if guide is not None or bidirectional:
        # The probe calls the transformer itself, which is not where FSDP2 gathers what lies around the blocks.
        assert isinstance(embedder, FSDPModule)
        embedder.unshard()
        with modes_kept(embedder):
            check_attention(embedder, guide, source=str(folder), bidirectional=bidirectional)
        free_gathered(embedder)
    return embedder


def _places(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    return {
        f"{at}.{last}".removeprefix("."): (module, last)
        for at, module in model.named_modules()
        for last in (*module._parameters, *module._buffers)
    }


@dataclass(kw_only=True)
class ReadingPlan:
    """Which tensors of the files become which weights of a model."""

    files: WeightFiles
    model: PreTrainedModel
    same: dict[str, str] = field(default_factory=dict)
    """Weight -> the tensor that it is, row by row."""
    made: list[tuple[str, WeightConverter, list[tuple[str, str]]]] = field(default_factory=list)
    """First weight, what cuts or joins tensors to make it and its like, and (pattern, tensor) of each tensor."""

    @torch.no_grad()
    def read(self, weights: Mapping[str, Tensor]) -> None:
        """Fill weights that are spread by `shard_blocks`, or plain, from the files."""
        for name, source in self.same.items():
            weight = weights[name]
            if weight.ndim:
                local_part(weight).copy_(self.files.rows(source, own_rows(weight)))
            else:
                weight.copy_(self.files.whole(source))
        for _, made in self._converted(whole=self.files.whole):
            load_wholes({name: weights[name] for name in made}, made)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weight -> the shape that the files give it; nothing is read."""
        found = {name: self.files.entries[source].shape for name, source in self.same.items()}

        def shape_only(source: str) -> Tensor:
            return torch.empty(self.files.entries[source].shape, device="meta")

        for _, made in self._converted(whole=shape_only):
            found |= {name: tuple(each.shape) for name, each in made.items()}
        return found

    def _converted(self, *, whole: Callable[[str], Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for first, converter, sources in self.made:
            fresh = copy.deepcopy(converter)
            for pattern, source in sources:
                fresh.add_tensor(first, source, pattern, _later(whole, source))  # type: ignore[arg-type]  # or a function
            made = fresh.convert(first, model=self.model, config=self.model.config)
            yield first, {name: each[0] if isinstance(each, list) else each for name, each in made.items()}


def _later(read: Callable[[str], Tensor], source: str) -> Callable[[], Tensor]:
    return lambda: read(source)


def plan_reading(model: PreTrainedModel, files: WeightFiles) -> ReadingPlan:
    """Match the tensors of the files with the model's weights by transformers' own renamings and conversions.

    Args:
        model: with or without weights.
        files: of its folder.

    Raises:
        ValueError: a weight that no tensor gives, or one of another shape; it names the folder and the weight.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    state = model.state_dict()
    plan = ReadingPlan(files=files, model=model)
    gathered: dict[str, tuple[WeightConverter, list[tuple[str, str]]]] = {}
    for source in sorted(files.entries):
        name, pattern = rename_source_key(source, renamings, converters, model.base_model_prefix, state)
        if name not in state:
            continue
        if pattern is None:
            plan.same[name] = source
        else:
            gathered.setdefault(name, (by_pattern[pattern], []))[1].append((pattern, source))
    plan.made = [(name, converter, sources) for name, (converter, sources) in gathered.items()]
    _check(plan, {name: tuple(each.shape) for name, each in state.items()})
    return plan


def _check(plan: ReadingPlan, wanted: Mapping[str, tuple[int, ...]]) -> None:
    folder, kind = plan.files.folder, type(plan.model).__name__
    found = plan.shapes()
    if missing := sorted(wanted.keys() - found.keys()):
        raise ValueError(
            f"{folder}: expected {len(wanted)} tensors of {kind}, {len(missing)} missing, first "
            f"{', '.join(missing[:3])}; fetch the weights again (a missing tensor would be random)"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(
                f"{folder}: expected shape {shape} for {name} of {kind} (config.json), got {found[name]}; check both files"
            )
