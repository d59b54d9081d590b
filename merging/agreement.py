"""Inputs must be the same model with other values: names, shapes and dtypes are compared before anything is merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from merging.sources import TensorSource
from merging.tied import is_output_layer, is_vocabulary, why_implied

SHOWN = 3
"""How many names an error lists."""

Tensors = Mapping[str, TensorSource]


@dataclass(frozen=True)
class Agreement:
    """What was found out about inputs that can be merged."""

    left_out: Mapping[str, str] = field(default_factory=dict)
    """Tensors that some inputs store and others do not need to, with the reason: neither merged nor written."""
    notes: tuple[str, ...] = ()
    """For the report: one line for each kind of difference that does no harm."""

    def kept(self, tensors: Tensors) -> dict[str, TensorSource]:
        """Return the tensors that take part, in their order."""
        return {name: tensor for name, tensor in tensors.items() if name not in self.left_out}


def refuse_disagreement(
    labels: Sequence[str], inputs: Sequence[Tensors], tied: Sequence[bool | None] = ()
) -> Agreement:
    """Compare every input with the first, whose layout, dtypes and configuration the result has.

    Tensors that an input may leave out (see ``merging.tied``) are left out of the merge; floating-point dtypes
    may differ, and the result has the first's.  Values are read only to decide whether a tensor may be left out.

    Args:
        labels: names of the inputs for errors and notes.
        inputs: their tensors by name.
        tied: what each configuration says of ``tie_word_embeddings``, see ``merging.tied.says_tied``; may be empty.

    Raises:
        ValueError: a tensor is missing or extra, a shape or a vocabulary size differs, an integer tensor meets one
            of another dtype, or weights are quantised; the message names input and tensor.
    """
    _refuse_quantised(labels, inputs)
    left_out = _left_out(labels, inputs, tied)
    notes = [f"{name} is left out: {reason}" for name, reason in left_out.items()]
    agreement = Agreement(left_out)
    first = agreement.kept(inputs[0])
    for label, tensors in zip(labels[1:], inputs[1:], strict=True):
        other = agreement.kept(tensors)
        _compare_names(labels[0], first, label, other)
        _compare_shapes(labels[0], first, label, other)
        notes += _compare_dtypes(labels[0], first, label, other)
    return Agreement(left_out, tuple(dict.fromkeys(notes)))


def _refuse_quantised(labels: Sequence[str], inputs: Sequence[Tensors]) -> None:
    for label, tensors in zip(labels, inputs, strict=True):
        for name, tensor in tensors.items():
            if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
                raise ValueError(
                    f"{label}: tensor {name}: expected full precision, got {tensor.dtype}, which is quantised; "
                    "merge the models before they are quantised"
                )


def _left_out(labels: Sequence[str], inputs: Sequence[Tensors], tied: Sequence[bool | None]) -> dict[str, str]:
    """Return the tensors that not all inputs store and that none of them needs to store, with the reason."""
    counts = Counter(name for tensors in inputs for name in tensors)
    incomplete = [name for name, count in counts.items() if count < len(inputs)]
    found: dict[str, str] = {}
    untied: dict[str, str] = {}
    for name in incomplete:
        reasons = {label: why_implied(name, of) for label, of in zip(labels, inputs, strict=True) if name in of}
        needing = [label for label, reason in reasons.items() if reason is None]
        if not needing:
            found[name] = str(next(iter(reasons.values())))
        elif is_output_layer(name):
            untied[name] = needing[0]
    lacking = {name: _first_without(name, labels, inputs) for name in incomplete}
    for name, label in untied.items() if len(found) + len(untied) == len(incomplete) else ():
        raise ValueError(
            f"{label}: expected no {name}, or one equal to the embeddings, as {lacking[name]} has none, "
            "got one of its own; save it without its output layer"
        )
    for name in found:
        if is_output_layer(name) and name in inputs[0] and tied and tied[0] is False:
            raise ValueError(
                f"{lacking[name]}: expected {name} as in {labels[0]}, whose config.json says tie_word_embeddings false, "
                "got none; save it with its output layer, or set tie_word_embeddings to true"
            )
    return found


def _first_without(name: str, labels: Sequence[str], inputs: Sequence[Tensors]) -> str:
    return next(label for label, tensors in zip(labels, inputs, strict=True) if name not in tensors)


def _compare_names(label: str, first: Tensors, other_label: str, other: Tensors) -> None:
    missing = [name for name in first if name not in other]
    extra = [name for name in other if name not in first]
    if missing or extra:
        parts = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("adds", extra)) if names]
        step = "merge models of one architecture"
        for longer, shorter, said in ((first, other, label), (other, first, other_label)):
            if prefix := _prefix_between(longer, shorter):
                step = f"the names of {said} begin with {prefix!r} besides; save both with one model class"
        raise ValueError(
            f"{other_label}: expected the tensors of {label}, got a model that {' and '.join(parts)}; {step}"
        )


def _prefix_between(longer: Iterable[str], shorter: Iterable[str]) -> str | None:
    """Return what must be put before every name of ``shorter`` to find it in ``longer``, if there is such a prefix."""
    wanted, names = set(longer), list(shorter)
    ends = "." + names[0] if names else ""
    for candidate in sorted(name.removesuffix(names[0]) for name in wanted if names and name.endswith(ends)):
        if all(candidate + name in wanted for name in names):
            return candidate
    return None


def _compare_shapes(label: str, first: Tensors, other_label: str, other: Tensors) -> None:
    for name, tensor in first.items():
        shape, got = tensor.shape, other[name].shape
        if shape == got:
            continue
        if is_vocabulary(name) and len(shape) == len(got) == 2 and shape[1] == got[1]:
            raise ValueError(
                f"{other_label}: tensor {name}: expected a vocabulary of {shape[0]} tokens as in {label}, got {got[0]}; "
                "bring them to one tokenizer and size (resize_token_embeddings) first"
            )
        raise ValueError(
            f"{other_label}: tensor {name}: expected shape {list(shape)} as in {label}, got {list(got)}; "
            "merge models of one architecture and vocabulary"
        )


def _compare_dtypes(label: str, first: Tensors, other_label: str, other: Tensors) -> list[str]:
    """Return a note for each pair of floating-point dtypes that differ; refuse any other difference."""
    mixed: Counter[tuple[str, str]] = Counter()
    for name, tensor in first.items():
        dtype, got = tensor.dtype, other[name].dtype
        if dtype == got:
            continue
        if not (dtype.is_floating_point and got.is_floating_point):
            raise ValueError(
                f"{other_label}: tensor {name}: expected {dtype} as in {label}, got {got}; "
                "only floating-point dtypes may differ, save it in the same dtype"
            )
        mixed[str(dtype).removeprefix("torch."), str(got).removeprefix("torch.")] += 1
    return [
        f"{count} tensors are {got} in {other_label} and {dtype} in {label}; the result is {dtype}"
        for (dtype, got), count in mixed.items()
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
