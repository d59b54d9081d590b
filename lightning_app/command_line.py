"""Dataclass <-> flags <-> file, and the commands' exit codes. Nothing here imports torch."""

import dataclasses
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from difflib import get_close_matches
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import tyro

from lightning_app.stop_signal import Stopped
from storage.json_file import read_json
from storage.yaml_file import read_yaml

Config = TypeVar("Config")
DONE, FAILED, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def main(
    config_class: type[Any],
    target: str,
    *,
    argv: Sequence[str] | None = None,
    positional: str | None = None,
    early: str | None = None,
) -> int:
    """Parse the flags, import ``target`` ("module:function"), call it with the configuration; returns the exit code.

    ``early`` is called before, for what can be refused without the imports of ``target``.

    0: done. 2: a mistake in what was asked (ValueError), one line on stderr. 1: a failure while running, with its traceback, or
    a result whose ``failed`` names what could not be done while the rest was.
    130: interrupted; 143: ended by SIGTERM, or put back into SLURM's queue (`Stopped`). ``--json`` prints what the function
    returns as the last line of stdout.
    """
    config = None
    try:
        config = parse(config_class, sys.argv[1:] if argv is None else argv, positional=positional)
        if early is not None:
            _function(early)(config)
        _quiet_imports()
        result = _function(target)(config)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        if os.environ.get("EMBARC_TRACEBACK"):
            traceback.print_exc()
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Stopped as stop:
        if stop.message:
            print(stop.message, file=sys.stderr)
        return int(str(stop.code))
    except SystemExit as stop:
        if config is None:  # --help
            raise
        # Lightning ends a fit with exit(1) after Ctrl-C, and with a SystemExit of code 0 after SIGTERM.
        print("interrupted", file=sys.stderr)
        return INTERRUPTED if isinstance(stop.__context__, KeyboardInterrupt) else TERMINATED
    except (RuntimeError, OSError, ArithmeticError, MemoryError) as error:
        if not getattr(error, "explained", False):  # else its one line says it all
            traceback.print_exc()
        print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    if config.json:
        print(json.dumps(result, allow_nan=False))
    return FAILED if isinstance(result, Mapping) and result.get("failed") else DONE


def _function(target: str) -> Callable[[Any], Any]:
    """What "module:function" names; the module is imported."""
    module, _, name = target.partition(":")
    return cast("Callable[[Any], Any]", getattr(import_module(module), name))


def leave(code: int) -> NoReturn:
    """End the process at once; for commands that leave nothing to be done when they return.

    Unloading torch takes half a second, a tenth of the time of a merge of two gigabytes. With several ranks, a rank that ends
    first and unloads gloo beside another that still works has been seen to abort, and Lightning then ends the run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _quiet_imports() -> None:
    """Hide what libraries say about themselves when they are imported, which no user can act on."""
    # bitsandbytes looks for a kernel package that only its 4-bit products use
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # lightning 2.6 calls torch's pytree by its old name in every batch transfer
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # every rank logs the same value of what all have measured together
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    # lightning and torch 2.13 gather by functions that have new names
    warnings.filterwarnings(
        "ignore", message=".*(all_gather|reduce_scatter|all_gather_into_tensor)[a-z_]* is deprecated.*"
    )
    # tokenizers warn of a fork after use; data loading here forks nothing
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def parse(config_class: type[Config], argv: Sequence[str], *, positional: str | None = None) -> Config:
    """Flags over ``--config FILE`` over defaults.

    Raises:
        ValueError: an unknown flag or key (with the closest), a value of another type; SystemExit(0) after ``--help``.
    """
    program = Path(sys.argv[0]).name
    shown = _with_positional(config_class, positional) if positional else config_class
    file = _config_file(argv)
    default = None if file is None else _from_mapping(shown, _read(file), str(file))
    complaint = StringIO()
    try:
        with redirect_stderr(complaint):
            config = cast("Config", tyro.cli(shown, prog=program, args=list(argv), default=default))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"{_unboxed(complaint.getvalue())}; see python {program} --help") from None
    if positional and not getattr(config, positional):
        raise ValueError(f"{positional}: expected at least one, got none; see python {program} --help")
    return config


def _with_positional(config_class: type[Config], name: str) -> type[Config]:
    """The same class with one field read from the bare arguments."""
    hints = get_type_hints(config_class)
    derived = dataclasses.make_dataclass(
        config_class.__name__,
        [(name, Annotated[hints[name], tyro.conf.Positional])],
        bases=(config_class,),
        frozen=True,
        kw_only=True,
    )
    derived.__doc__ = config_class.__doc__
    return derived


def _config_file(argv: Sequence[str]) -> Path | None:
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            return Path(argv[i + 1])
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def _read(file: Path) -> Mapping[str, Any]:
    readers: dict[str, Callable[[Path], Any]] = {".json": read_json, ".yaml": read_yaml, ".yml": read_yaml}
    if file.suffix not in readers:
        raise ValueError(f"--config {file}: expected a .json or .yaml file, got the suffix {file.suffix!r}")
    if not file.is_file():
        raise ValueError(f"--config {file}: expected a file, found none")
    content = readers[file.suffix](file)
    if not isinstance(content, Mapping):
        raise ValueError(f"--config {file}: expected settings by name, got {type(content).__name__}")
    return content


def _from_mapping(config_class: type[Any], content: Mapping[str, Any], place: str) -> Any:
    """A configuration from plain values; what is required and absent is left for the flags."""
    hints = get_type_hints(config_class)
    if unknown := [key for key in content if key not in hints]:
        close = get_close_matches(str(unknown[0]), hints, n=1)
        raise ValueError(
            f"{place}: expected settings of {config_class.__name__}, got {unknown[0]!r}; closest: {', '.join(close) or 'none'}"
        )
    values = {name: _value(hints[name], content[name], f"{place}: {name}") for name in content}
    for field in dataclasses.fields(config_class):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            values.setdefault(field.name, tyro.MISSING)
    return config_class(**values)


def _value(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, place)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_value(arguments[0], item, f"{place}.{i}") for i, item in enumerate(value))
    if origin is Literal and value in arguments:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _from_mapping(hint, value, place)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ValueError(f"{place}: expected {_expected(hint)}, got {value!r}")


def _expected(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return "a list"
    return "settings by name" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint))


def _unboxed(text: str) -> str:
    """tyro's boxed complaint as one line: its first section, and the flags it suggests."""
    lines = [line.strip("│╭╮╰╯─ ").strip() for line in text.splitlines()]
    message = " ".join(line for line in lines[1:] if line).split("For full helptext")[0]
    return " ".join(message.split())
