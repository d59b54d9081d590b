"""The preflight: proof, before the first step, that training will change the embeddings.

The commonest silent failure of adapter training is an adapter that is not there: targets that the forward pass
skips, frozen factors, embeddings cut from the graph. One small batch through the real loss tells.

Dimension names: n texts, d length of an embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from models.adapter import find_adapter
from models.dense import is_carried
from models.embedder import check_finite_weights, modes_kept

DORA_ROUNDING = 1e-5
"""Largest change of an embedding by a fresh DoRA adapter, relative to the embedding's largest element."""

Loss = Callable[[Float[Tensor, "n d"], Integer[Tensor, " n"]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What the preflight found."""

    loss: float
    """Loss of the batch."""
    trainable: int
    """Number of trainable weights."""
    total: int
    """Number of all weights."""
    adapted: tuple[str, ...]
    """Modules that carry an adapter; empty when all weights are trained."""
    unused: tuple[str, ...]
    """Weights that no embedding depends on; the preflight froze them (all-weights training only)."""


def preflight(
    embedder: SentenceTransformer,
    texts: Sequence[str],
    labels: Integer[Tensor, " n"],
    loss: Loss,
    *,
    fresh: bool = True,
) -> Preflight:
    """Prove on one batch that the embedder can be trained; change nothing but the freezing of unused weights.

    With an adapter: weights finite, factors in float32 and trainable, each adapted module reached by the forward
    pass, embeddings bit-equal with the adapter on and off while it is fresh (lora_B = 0; within `DORA_ROUNDING` where
    DoRA divides by a length and multiplies by it again), and a finite, non-zero gradient for every lora_B, DoRA
    magnitude and trained Dense weight (that of lora_A is zero as long as lora_B is, so it is asked for later adapters
    only).
    Without one: every trainable weight gets a finite gradient, those that get none are frozen and reported.
    Modes, random state and gradients are afterwards as before.

    Args:
        embedder: as it will be trained.
        texts: a small batch (4 to 16) with at least one pair of equal labels.
        labels: their labels.
        loss: the objective, a function of embeddings and labels.
        fresh: False for an adapter that has been trained before (a later stage).

    Raises:
        ValueError: names the module that would not train, or the tensor that is not finite.
    """
    check_finite_weights(embedder)
    adapter = find_adapter(embedder)
    layers = {} if adapter is None else _adapted_layers(adapter)
    if adapter is not None:
        _check_factors(layers)
    with modes_kept(embedder), _random_state_kept(embedder):
        if adapter is not None and fresh:
            _check_identity(embedder, adapter, layers, texts)
        with _gradients_kept(embedder), _calls_counted(layers) as calls:
            embedder.train()
            value = loss(_embed(embedder, texts), labels.to(embedder.device))
            if not bool(torch.isfinite(value)):
                raise ValueError(f"preflight: expected a finite loss, got {value.item()}; check temperature and batch")
            if not value.requires_grad:
                raise ValueError(
                    "preflight: expected a loss that depends on trainable weights, got none; unfreeze some"
                )
            for name in layers:
                if not calls[name]:
                    raise ValueError(
                        f"preflight: expected the forward pass to use the adapter on {name}, but it never does; "
                        "leave this module out of --lora.targets"
                    )
            value.backward()  # type: ignore[no-untyped-call]
            if adapter is None:
                unused = _check_weights(embedder)
            else:
                unused = ()
                _check_adapter_gradients(layers, fresh=fresh)
                _check_dense_gradients(embedder)
    parameters = dict(embedder.named_parameters())
    for name in unused:
        parameters[name].requires_grad_(False)
    return Preflight(
        loss=float(value.detach()),
        trainable=sum(each.numel() for each in parameters.values() if each.requires_grad),
        total=sum(each.numel() for each in parameters.values()),
        adapted=tuple(layers),
        unused=unused,
    )


def _embed(embedder: SentenceTransformer, texts: Sequence[str]) -> Float[Tensor, "n d"]:
    features = embedder.preprocess(list(texts))
    on_device = {
        key: value.to(embedder.device) if isinstance(value, Tensor) else value for key, value in features.items()
    }
    return embedder(on_device)["sentence_embedding"]


def _adapted_layers(adapter: PeftModel) -> dict[str, LoraLayer]:
    """By the name of the adapted module; of a stacked expert weight, by the weight's own name."""
    layers = {}
    for name, module in adapter.named_modules():
        if isinstance(module, LoraLayer):
            name = name.removeprefix("base_model.model.")
            if isinstance(module, ParamWrapper):
                # The wrappers of one module's weights lie inside each other.
                name = f"{name.removesuffix('.base_layer').replace('.base_layer.', '.')}.{module.parameter_name}"
            layers[name] = module
    return layers


def _factors(layer: LoraLayer) -> Iterator[tuple[str, nn.Parameter]]:
    for kind in ("lora_A", "lora_B", "lora_magnitude_vector"):
        for module in getattr(layer, kind).values():
            yield kind, module.weight


def _check_factors(layers: dict[str, LoraLayer]) -> None:
    if not layers:
        raise ValueError("preflight: expected modules with a LoRA adapter, got none; check --lora.targets")
    for name, layer in layers.items():
        for kind, weight in _factors(layer):
            if weight.dtype != torch.float32:
                raise ValueError(
                    f"preflight: expected {kind} of {name} in float32, got {weight.dtype}; add the adapter with "
                    "add_lora after the base has its precision"
                )
            if not weight.requires_grad:
                raise ValueError(
                    f"preflight: expected {kind} of {name} to be trainable, got a frozen one; set requires_grad on it"
                )


def _check_identity(
    embedder: SentenceTransformer, adapter: PeftModel, layers: dict[str, LoraLayer], texts: Sequence[str]
) -> None:
    for name, layer in layers.items():
        if any(kind == "lora_B" and bool(weight.any()) for kind, weight in _factors(layer)):
            raise ValueError(
                f"preflight: expected a fresh adapter (lora_B = 0), got a non-zero one on {name}; "
                "start from the base, or pass fresh=False to continue a trained adapter"
            )
    embedder.eval()
    with torch.no_grad():
        with_adapter = _embed(embedder, texts)
        with adapter.disable_adapter():
            without = _embed(embedder, texts)
    magnitudes = any(kind == "lora_magnitude_vector" for layer in layers.values() for kind, _ in _factors(layer))
    allowed = DORA_ROUNDING * without.abs().max().item() if magnitudes else 0.0
    change = (with_adapter - without).abs().max().item()
    if not change <= allowed:
        raise ValueError(
            f"preflight: expected unchanged embeddings from a fresh adapter, got a change of {change:.2g}; "
            "start from an embedder that only add_lora has changed"
        )


def _check_adapter_gradients(layers: dict[str, LoraLayer], *, fresh: bool) -> None:
    for name, layer in layers.items():
        for kind, weight in _factors(layer):
            if (kind != "lora_A" or not fresh) and (got := _lacks(weight)):
                raise ValueError(
                    f"preflight: expected a non-zero, finite gradient for {kind} of {name}, got {got}; "
                    "leave this module out of --lora.targets, or check the loss and the batch"
                )


def _check_dense_gradients(embedder: SentenceTransformer) -> None:
    for place, module in embedder.named_children():
        for name, weight in module.named_parameters() if is_carried(module) else ():
            if weight.requires_grad and (got := _lacks(weight)):
                raise ValueError(
                    f"preflight: expected a non-zero, finite gradient for {name} of the Dense module {place}, got "
                    f"{got}; leave --lora.dense at freeze, or check the loss and the batch"
                )


def _lacks(weight: nn.Parameter) -> str | None:
    """What is wrong with the gradient."""
    if weight.grad is None:
        return "none"
    if not bool(weight.grad.any()):
        return "zero"
    return None if bool(torch.isfinite(weight.grad).all()) else "NaN or infinity"


def _check_weights(embedder: SentenceTransformer) -> tuple[str, ...]:
    trainable = {name: each for name, each in embedder.named_parameters() if each.requires_grad}
    for name, weight in trainable.items():
        if weight.grad is not None and not bool(torch.isfinite(weight.grad).all()):
            raise ValueError(
                f"preflight: expected a finite gradient for {name}, got NaN or infinity; check the loss and the batch"
            )
    unused = tuple(name for name, weight in trainable.items() if weight.grad is None)
    if not any(weight.grad is not None and bool(weight.grad.any()) for weight in trainable.values()):
        raise ValueError(
            "preflight: expected a non-zero gradient for some weight, got none; check the loss and the batch"
        )
    return unused


@contextmanager
def _random_state_kept(embedder: SentenceTransformer) -> Iterator[None]:
    with torch.random.fork_rng(devices=[embedder.device] if embedder.device.type == "cuda" else []):
        yield


@contextmanager
def _gradients_kept(embedder: nn.Module) -> Iterator[None]:
    before = [(each, each.grad) for each in embedder.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


@contextmanager
def _calls_counted(layers: dict[str, LoraLayer]) -> Iterator[Counter[str]]:
    calls: Counter[str] = Counter()
    handles = []
    for name, layer in layers.items():

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        assert isinstance(layer, nn.Module)
        handles.append(layer.register_forward_pre_hook(count))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
