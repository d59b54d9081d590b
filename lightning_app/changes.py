"""What differs between a run and its resume: settings, data and backbone, and which of it was allowed to.

Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

NOT_COMPARED = (
    *("resume", "overwrite", "plan", "config", "json", "output", "offline", "cache", "allow_changes"),
    *("num_workers", "timeout", "every_n_train_steps"),
)
"""Settings that a resumed run may change: nothing that is computed or kept depends on them."""
SHAPING = ("lora", "adapt_top", "bidirectional")
"""Settings that say which weights are trained; a saved state belongs to them."""
MOST_SHOWN = 8


@dataclass(frozen=True)
class Change:
    """One setting, or one fingerprint, that is not what it was."""

    name: str
    """Its place, such as devices, stages.0.epochs or data.sha256."""
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.before)} before, {_short(self.now)} now"


def find_changes(kind: type[Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every setting that differs, by name.

    Args:
        kind: The configuration's class; what is older than a setting was made with that setting's default.
        before, now: Its plain values.

    >>> from lightning_app.config import TrainConfig
    >>> [str(each) for each in find_changes(TrainConfig, {}, TrainConfig(devices=2, json=True).to_dict())]
    ['devices: 1 before, 2 now']
    """
    changes = _differences(_flat(_with_defaults(kind, before)), _flat(now))
    return [change for change in changes if change.name.split(".")[0] not in NOT_COMPARED]


def find_other_inputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every fingerprint that differs among those that are known of both.

    >>> [each.name for each in find_other_inputs({"data": {"sha256": "0"}}, {"data": {"sha256": "1"}, "backbone": {}})]
    ['data.sha256']
    """
    told, found = _flat(before), _flat(now)
    both = told.keys() & found.keys()
    return _differences({key: told[key] for key in both}, {key: found[key] for key in both})


def refuse_changes(path: Path, changes: Sequence[Change], *, allowed: Sequence[str], known: Iterable[str]) -> None:
    """Refuse a resume with changes that were not allowed by name; a name stands for what lies below it, too.

    Args:
        path: Folder of the run.
        changes: As found.
        allowed: Of --allow-changes.
        known: Every name that could be allowed.

    Raises:
        ValueError: an allowed name that is none; a change that is not allowed, or cannot be.
    """
    names = {part for name in known for part in _and_above(name)}
    for name in map(_plain_name, allowed):
        if name not in names:
            close = get_close_matches(name, sorted(names), n=1)
            raise ValueError(
                f"--allow-changes {name}: expected a setting by its name, such as devices or data.sha256, got another; "
                f"closest: {', '.join(close) or 'none'}"
            )
    refused = [change for change in changes if _shapes(change) or not _is_allowed(change.name, allowed)]
    if not refused:
        return
    advice = "use them, or another --output"
    if shaping := [change.name for change in refused if _shapes(change)]:
        advice += f" ({', '.join(shaping[:MOST_SHOWN])}: the saved weights belong to it)"
    else:
        advice += f", or add --allow-changes {' '.join(change.name for change in refused[:MOST_SHOWN])}"
    raise ValueError(f"--resume {path}: expected the settings of the run, got others ({_listed(refused)}); {advice}")


def without_effect(changes: Sequence[Change], allowed: Sequence[str]) -> list[str]:
    """The allowed names under which nothing has changed.

    >>> without_effect([Change("data.sha256", "0", "1")], ["data", "devices"])
    ['devices']
    """
    return [name for name in allowed if not any(_is_allowed(change.name, [name]) for change in changes)]


def names_of(kind: type[Any], *contents: Mapping[str, Any]) -> set[str]:
    """Every name of a setting in these plain values of a configuration."""
    return {name for content in contents for name in _flat(_with_defaults(kind, content))}


def _listed(changes: Sequence[Change]) -> str:
    more = f"; and {len(changes) - MOST_SHOWN} more" if len(changes) > MOST_SHOWN else ""
    return "; ".join(map(str, changes[:MOST_SHOWN])) + more


def _short(value: Any) -> str:
    """A value as Python writes it; of a hash the beginning."""
    is_hash = isinstance(value, str) and len(value) in (40, 64) and set(value) <= set("0123456789abcdef")
    return value[:12] if is_hash else repr(value)


def _is_allowed(name: str, allowed: Sequence[str]) -> bool:
    return not _and_above(name).isdisjoint(map(_plain_name, allowed))


def _shapes(change: Change) -> bool:
    """Whether the saved weights are of another shape or name after it; a stage that is added or left out is not renamed."""
    first, *rest = change.name.split(".")
    renamed = first == "stages" and rest[1:] == ["name"] and None not in (change.before, change.now)
    return renamed or first in SHAPING


def _and_above(name: str) -> set[str]:
    """a.b.c -> a, a.b, a.b.c."""
    parts = name.split(".")
    return {".".join(parts[: i + 1]) for i in range(len(parts))}


def _plain_name(name: str) -> str:
    """As in config.json; a flag's spelling means the same."""
    return name.removeprefix("--").replace("-", "_")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    names = sorted(before.keys() | now.keys())
    return [Change(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def _with_defaults(kind: Any, content: Any) -> Any:
    """The plain values of a configuration, completed where it is silent, in nested configurations and lists of them too."""
    if is_dataclass(kind) and isinstance(content, Mapping):
        hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
        told = {key: _with_defaults(hints.get(key), value) for key, value in content.items()}
        return {key: default for key, field in known.items() if (default := _default(field)) is not MISSING} | told
    if get_origin(kind) is tuple and isinstance(content, list):
        return [_with_defaults(get_args(kind)[0], item) for item in content]
    return content


def _default(field: Field[Any]) -> Any:
    """The default of a field in plain values, or MISSING."""
    return _plain(field.default if field.default_factory is MISSING else field.default_factory())


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested mappings and lists -> {dotted place: leaf}."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        return {place: value}
    return {
        key: leaf for name, item in items for key, leaf in _flat(item, f"{place}.{name}" if place else name).items()
    }
