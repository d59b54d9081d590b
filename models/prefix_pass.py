"""The frozen blocks below the lowest one that is trained: which they are, what they compute, and a pass without them.

Dimension names: n texts, t tokens, w width of the hidden states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from models.adapter import transformer_of
from models.lora import block_stack

Forward = Callable[..., Any]
NO_PART_OF_IT = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version", "torch_dtype")
"""Entries of a config that say where weights come from, not what is computed with them."""


def lowest_trained_block(embedder: SentenceTransformer) -> int:
    """Place of the lowest block with a trainable weight; 0 too where weights outside the blocks are trained.

    Dense modules behind the transformer do not count, as they lie above all blocks. A model of which nothing is trained
    has the number of its blocks.

    Example:
        >>> from models import load_embedder
        >>> from models.lora import add_lora
        >>> embedder = load_embedder("tiny-llm")
        >>> _ = add_lora(embedder, r=2, adapt_top=2)
        >>> lowest_trained_block(embedder)
        3
    """
    model = transformer_of(embedder)
    _, stack = block_stack(model)
    inside = {id(each) for block in stack for each in block.parameters()}
    if any(each.requires_grad and id(each) not in inside for each in model.parameters()):
        return 0
    trained = (place for place, block in enumerate(stack) if any(each.requires_grad for each in block.parameters()))
    return next(trained, len(stack))


def quiet_prefix(embedder: SentenceTransformer, layer: int) -> None:
    """Put what lies below block `layer` into evaluation mode: no dropout where nothing is trained.

    The states below are then the same in every epoch, whether they are kept or not.

    Example:
        >>> from models import load_embedder
        >>> embedder = load_embedder("tiny-llm").train()
        >>> quiet_prefix(embedder, 2)
        >>> [block.training for block in embedder[0].model.layers]
        [False, False, True, True, True]
    """
    model = transformer_of(embedder)
    _, stack = block_stack(model)
    kept = {id(each) for block in stack[layer:] for each in block.modules()}
    for module in model.modules():
        above = any(id(each) in kept for each in module.modules())
        if not above:
            module.eval()


def describe_prefix(embedder: SentenceTransformer, layer: int) -> dict[str, Any]:
    """What the states that enter block `layer` depend on besides the tokens, as JSON has it.

    That is the weights of the blocks below and of the transformer outside its blocks (as they lie in memory, few bits
    included), its config with the kind of attention, and the kind of device, whose rounding is its own.

    Example:
        >>> from models import load_embedder
        >>> sorted(describe_prefix(load_embedder("tiny-llm"), 2))
        ['attention', 'config', 'device', 'layer', 'model', 'torch', 'weights']
    """
    model = transformer_of(embedder)
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    name, _ = block_stack(inner)
    digest = hashlib.sha256()
    for key, tensor in inner.state_dict().items():
        place = key.removeprefix(f"{name}.").partition(".")[0] if key.startswith(f"{name}.") else ""
        if isinstance(tensor, Tensor) and (not place or int(place) < layer):
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    config: Any = inner.config
    settings = {key: value for key, value in config.to_dict().items() if key not in NO_PART_OF_IT}
    return {
        "model": type(inner).__name__,
        "config": hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest(),
        "attention": str(getattr(config, "_attn_implementation", None)),
        "weights": digest.hexdigest(),
        "layer": layer,
        "device": embedder.device.type,
        "torch": torch.__version__,
    }


class PrefixPass:
    """Passes of a transformer through the blocks below block `layer` alone, and through the others alone.

    Names, attributes and weights of the blocks stay: during a pass some have another ``forward``, which hands its input on.
    Masks, positions and the last norm are still the model's own business.

    Args:
        embedder: with or without an adapter.
        layer: 1 to the number of blocks - 1.

    Raises:
        ValueError: there is no such block, or none below it.
    """

    def __init__(self, embedder: SentenceTransformer, layer: int) -> None:
        self._embedder = embedder
        _, stack = block_stack(transformer_of(embedder))
        if not 1 <= layer < len(stack):
            raise ValueError(f"prefix: expected a block from 1 to {len(stack) - 1} of this model, got {layer}")
        self._below, self._first, self._above = list(stack[:layer]), stack[layer], list(stack[layer + 1 :])
        self._gives: int | None = None
        """Items of the tuple that a block gives; None for a tensor."""

    def capture(self, features: Mapping[str, Any]) -> Float[Tensor, "n t w"]:
        """The states that enter block `layer`, without gradient, of a model in evaluation mode; those above do nothing."""
        caught: list[Tensor] = []

        def note(block: nn.Module, args: object, output: Any) -> None:
            self._gives = len(output) if isinstance(output, tuple) else None

        def catch(*args: Any, **kwargs: Any) -> Any:
            caught.append(_states(args, kwargs))
            return self._hand_on(*args, **kwargs)

        noting = self._below[0].register_forward_hook(note)
        transformer: nn.Module = self._embedder[0]
        try:
            with (
                torch.no_grad(),
                replaced({self._first: catch} | dict.fromkeys(self._above, self._hand_on)),
            ):
                transformer.forward(dict(features))
        finally:
            noting.remove()
        return caught[0]

    @contextmanager
    def skipping(self, states: Float[Tensor, "n t w"]) -> Iterator[None]:
        """In the block every pass gives `states` to block `layer`, and computes none below it."""

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            given = states.to(_states(args, kwargs).device)
            return ((given, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": given})

        entering = self._first.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        try:
            with replaced(dict.fromkeys(self._below, self._hand_on)):
                yield
        finally:
            entering.remove()

    def _hand_on(self, *args: Any, **kwargs: Any) -> Any:
        states = _states(args, kwargs)
        return states if self._gives is None else (states, *[None] * (self._gives - 1))


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """In the block each module has another ``forward``; what it had of its own (such as accelerate's) comes back."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = own


def _states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    states = args[0] if args else kwargs["hidden_states"]
    assert isinstance(states, Tensor)
    return states
