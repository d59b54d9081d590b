"""The plan of a merge as a person reads it: what would be read, computed and written."""

from collections.abc import Mapping
from typing import Any

UNITS = ("bytes", "kB", "MB", "GB", "TB")


def plan_text(plan: Mapping[str, Any]) -> str:
    """Return the text for one plan, or for each document of a recipe."""
    if "documents" in plan:
        return "\n\n".join(plan_text(document) for document in plan["documents"])
    space = "task vectors (differences from the base)" if plan["space"] == "task_vector" else "the weights themselves"
    told = ", ".join(f"{name} {value}" for name, value in plan["parameters"].items()) or "defaults"
    twice = f"; {plan['read_twice']} of them twice" if plan["read_twice"] else ""
    lines = [
        f"merge    {plan['method']} on {space}, one angle a {plan['granularity']}; {told}",
        *(f"input    {model['path']} ({model['kind']})" for model in plan["inputs"]),
        f"base     {plan['base'] or 'none'}",
        f"read     {size_text(plan['bytes_read'])} in {plan['tensors']} tensors, {_counted(plan['windows'], 'window')}{twice}",
        f"compute  {plan['elements']:,} numbers; at most {size_text(plan['peak_memory'])} of memory",
        f"write    {size_text(plan['bytes_written'])} to {plan['output']}",
        *(f"         {name} ({size_text(size)})" for name, size in plan["files"].items()),
        f"carry    {', '.join(plan['companions']) or 'nothing'}",
        *(f"note     {note}" for note in plan["notes"]),
        "Nothing was written.",
    ]
    return "\n".join(lines)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def size_text(size: int) -> str:
    """Return a size in decimal units.

    >>> size_text(999), size_text(1_192_135_096)
    ('999 bytes', '1.19 GB')
    """
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}" if unit else f"{size} bytes"
