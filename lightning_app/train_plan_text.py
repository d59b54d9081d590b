"""The plan of a run as a person reads it: what would be trained, held in memory and left on disk."""

from collections.abc import Mapping
from typing import Any

from lightning_app.plan_text import size_text

COUNTED = ("weights", "adapter", "gradients", "optimizer", "buckets", "gathered")


def train_plan_text(plan: Mapping[str, Any]) -> str:
    """Return the text for what `plan_run` returned."""
    memory, disk = plan["memory"], plan["disk"]
    held = ", ".join(f"{name} {size_text(size)}" for name in COUNTED if (size := memory[name]))
    trained = (
        "unknown"
        if plan["trainable"] is None
        else f"{plan['trainable']:,} parameters, {plan['trainable_share']:.2%} of all"
    )
    merges = ", ".join(disk["merges"])
    kept = [f"{what} {size_text(disk[what])}" for what in ("base", "stages", "resume") if disk[what]]
    kept += [f"{len(disk['merges'])} merges ({merges}) {size_text(sum(disk['merges'].values()))}"] if merges else []
    lines = [
        f"model    {plan['backbone']} ({plan['folder'] or 'no folder'}): {plan['parameters']:,} parameters"
        + (f" in {plan['dtype']}" if plan["dtype"] else ""),
        f"train    {trained}" + (f"; LoRA on {plan['adapted']} layers" if plan["adapted"] else ""),
        *(_stage_line(each) for each in plan["stages"]),
        f"steps    at most {plan['steps']:,}"
        + ("" if plan["tokens"] is None else f"; {'at most ' if plan['rough'] else ''}{plan['tokens']:,} tokens"),
        f"memory   {_how(plan)}: {held}",
        f"peak     {_about(memory['peak'])} (activations {_about(memory['activations'])}, {_ends(memory)})",
        *_wire(plan),
        f"disk     {'unknown' if disk['total'] is None else size_text(disk['total'])}: {', '.join(kept) or 'no weights'}",
        *(f"note     {note}" for note in plan["notes"]),
        "Nothing was started, nothing was written.",
    ]
    return "\n".join(lines)


def _stage_line(stage: Mapping[str, Any]) -> str:
    tokens = "" if stage["tokens"] is None else f"; {stage['tokens']:,} tokens, {stage['padding_share']:.0%} padding"
    return (
        f"stage    {stage['name']}: {stage['texts']:,} texts of {stage['labels']} labels, {stage['epochs']} x "
        f"{stage['steps_per_epoch']} steps of {stage['classes']} x {stage['texts_per_class']}{tokens}"
    )


def _how(plan: Mapping[str, Any]) -> str:
    """Precision, what saves memory, and on how many devices."""
    parts = [plan["precision"]]
    parts += [] if plan["quantization"] == "none" else [f"the frozen base in {plan['quantization']}"]
    parts += ["gradient checkpointing"] if plan["gradient_checkpointing"] else []
    spread = ", its weights spread over them (fsdp)" if plan["strategy"] == "fsdp" else ""
    return f"{', '.join(parts)} on {_devices(plan['devices'])}{spread}"


def _wire(plan: Mapping[str, Any]) -> list[str]:
    """What several devices send each other, as far as it is much."""
    if plan["devices"] == 1:
        return []
    wire = plan["wire"]
    parts = ", ".join(
        f"{what} {size_text(wire[what])}" for what in ("weights", "gradients", "embeddings") if wire[what]
    )
    return [f"wire     {size_text(wire['total'])} a step and device: {parts}"]


def _ends(memory: Mapping[str, Any]) -> str:
    return f"end of a stage {_about(memory['stage_end'])}, measuring a merge {_about(memory['merged'])}"


def _devices(count: int) -> str:
    return "one device" if count == 1 else f"each of {count} devices"


def _about(size: int | None) -> str:
    return "unknown" if size is None else f"about {size_text(size)}"
