"""The merge command: names to folders, then one call of the engine. Imports neither lightning nor a model class.

SHA-256 of the inputs is the largest single cost of a merge of files: it starts before torch is imported.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning_app.config import MergeConfig
from lightning_app.plan_text import plan_text
from lightning_app.sizes import bytes_of
from merging.methods import find_method
from models.backbones import lookup_backbone
from storage.hashing import FileHashes
from storage.lock import folder_lock
from storage.manifest import weight_files

PER_INPUT = ("density", "gamma", "epsilon")


def merge(config: MergeConfig) -> dict[str, Any]:
    """Merge ``config.inputs`` into ``config.output``; returns the summary that ``--json`` prints.

    Raises:
        ValueError: what was asked is not possible; nothing has been written.
    """
    _refuse_contradictions(config)
    arguments = _arguments(config)
    resources = {
        "memory": bytes_of("--memory", config.memory),
        "shard_bytes": bytes_of("--shard-size", config.shard_size),
        "threads": config.threads,
        "device": config.device,
        "overwrite": config.overwrite,
    }
    hashes = FileHashes()
    if config.recipe is None:
        arguments["base"] = None if config.base is None else _located(config.base, config)
        arguments["inputs"] = [_located(name, config) for name in config.inputs]
        hashes.start(_files([*arguments["inputs"], *([arguments["base"]] if arguments["base"] else [])]))
    output = Path(config.output)
    try:
        if config.plan:
            return _plan(config, arguments, resources, hashes)
        _refuse_strange_output(config, output)
        with _no_empty_folders(output), folder_lock(output):
            report = _carry_out(config, arguments, resources, hashes)
    finally:
        hashes.stop()
    print(_said(report, config.output), file=sys.stderr)
    return {"output": config.output, "method": report["method"], **report["summary"]}


def _carry_out(
    config: MergeConfig, arguments: dict[str, Any], resources: dict[str, Any], hashes: FileHashes
) -> dict[str, Any]:
    """Call what the flags ask for."""
    from lightning_app.completing import completing
    from lightning_app.merge_progress import showing_bytes, showing_tensors

    first = config.base or next(iter(config.inputs), "")
    row = None if Path(first).exists() else lookup_backbone(first)
    complete = completing(row=row, layout=config.layout)
    if config.search is not None:
        from lightning_app.searching import search_merge

        given = {key: arguments.pop(key) for key in ("inputs", "method", "base", "seed")}
        return search_merge(
            **given,
            output=config.output,
            base_name=config.base,
            retention=config.retention,
            evaluations=config.evaluations,
            strategy=config.strategy,
            device=resources.pop("device"),
            cache=config.cache,
            offline=config.offline,
            merge=arguments,
            write=resources,
            complete=complete,
        )
    if config.adapter:
        from merging.lora_space import merge_adapters

        chosen = {key: arguments[key] for key in arguments if key not in NOT_FOR_ADAPTERS}
        with showing_tensors() as progress:
            return merge_adapters(
                output=config.output, rank=config.rank, overwrite=config.overwrite, progress=progress, **chosen
            )
    with showing_bytes() as progress:
        if config.recipe is not None:
            from lightning_app.recipes import run_recipe

            return run_recipe(
                config.recipe,
                config.output,
                locate=lambda name, revision: _located(name, config, revision),
                compat=config.compat,
                progress=progress,
                complete=complete,
                **resources,
            )
        from merging.engine import merge_checkpoints

        return merge_checkpoints(
            output=config.output,
            progress=progress,
            complete=complete,
            hashes=hashes,
            **arguments,
            **resources,
        )


NOT_FOR_ADAPTERS = ("space", "granularity", "compat", "dtype", "lightning_checkpoints")


def _plan(
    config: MergeConfig, arguments: dict[str, Any], resources: dict[str, Any], hashes: FileHashes
) -> dict[str, Any]:
    """Print the plan (unless ``--json`` does), and return it."""
    if config.recipe is not None:
        from lightning_app.recipes import plan_recipe

        plans = plan_recipe(
            config.recipe,
            config.output,
            locate=lambda name, revision: _located(name, config, revision),
            compat=config.compat,
            **resources,
        )
        described: dict[str, Any] = {"documents": [plan.describe() for plan in plans]}
    else:
        from merging.plan import plan_merge
        from merging.request import Request, settings_of

        told = {key: arguments.pop(key) for key in TOLD if key in arguments}
        settings = settings_of(None, inputs=len(arguments["inputs"]), **told)
        plan = plan_merge(Request(settings=settings, **arguments), config.output, hashes=hashes, **resources)
        described = plan.describe()
    if not config.json:
        print(plan_text(described))
    return described


TOLD = ("t", "weights", "scale", "normalize", "rescale", "select_topk", *PER_INPUT)


def _arguments(config: MergeConfig) -> dict[str, Any]:
    """The arguments of ``merge_checkpoints`` that the flags give, without the models."""
    each = {key: getattr(config, key) for key in PER_INPUT}
    return {
        "method": config.method,
        "t": config.t,
        "weights": _weights(config),
        "space": config.space,
        "granularity": config.granularity,
        "norm": config.norm,
        "antipodal": config.antipodal,
        "scale": config.scale,
        **{key: values[0] if len(values) == 1 else values or None for key, values in each.items()},
        "normalize": config.normalize,
        "rescale": config.rescale,
        "select_topk": config.select_topk,
        "seed": config.seed,
        "extrapolate": config.extrapolate,
        "compat": config.compat,
        "dtype": config.dtype,
        "lightning_checkpoints": config.lightning_checkpoints,
    }


def _weights(config: MergeConfig) -> tuple[float, ...] | None:
    """``--weights``, or those of an exponential moving average: the k-th of n has (1 - d) d^(n - k), the first d^(n - 1)."""
    if config.ema is None:
        return config.weights or None
    if config.weights or config.t is not None:
        raise ValueError("--ema: expected neither --weights nor --t beside it, got one; leave it out")
    if not 0 <= config.ema < 1:
        raise ValueError(f"--ema: expected a decay in [0, 1), got {config.ema}; 0.9 is common")
    n, d = len(config.inputs), config.ema
    return tuple((1 - d if k else 1.0) * d ** (n - 1 - k) for k in range(n))


def _refuse_contradictions(config: MergeConfig) -> None:
    """Refuse flags that exclude each other or would have no effect, before anything is opened."""
    if config.recipe is not None:
        _refuse_beside(config, "--recipe", sorted(_changed(config) - BESIDE_RECIPE), "it to stand in the recipe")
        return
    if config.method is None:
        raise ValueError("--method: expected a method or --recipe FILE, got neither; see python merge.py --help")
    find_method(config.method)
    if not config.inputs:
        raise ValueError("--inputs: expected the models to merge, got none; add --inputs")
    changed = _changed(config)
    if config.search is None and (idle := sorted(changed & ONLY_WITH_SEARCH)):
        raise ValueError(
            f"--{_flag(idle[0])}: expected --search beside it, got none; add --search silhouette or drop it"
        )
    if config.rank is not None and not config.adapter:
        raise ValueError("--rank: expected --adapter beside it, got no --adapter; add it or leave --rank out")
    if config.adapter:
        beside = sorted(changed & {*NOT_FOR_ADAPTERS, "memory", "threads", "shard_size", "device", "layout"})
        _refuse_beside(config, "--adapter", beside, "a merge of whole models for it")
    if config.adapter and config.search is not None:
        raise ValueError(
            "--adapter: expected no --search beside it, got both; search first, then merge with its weights"
        )
    if config.adapter and config.plan:
        raise ValueError(
            "--plan: expected a merge of whole models, got --adapter; an adapter takes seconds: leave it out"
        )


BESIDE_RECIPE = {
    *("recipe", "output", "compat", "layout", "memory", "shard_size", "threads", "device"),
    *("plan", "overwrite", "offline", "cache", "config", "json"),
}
ONLY_WITH_SEARCH = {"retention", "evaluations", "strategy"}


def _changed(config: MergeConfig) -> set[str]:
    """Names of the settings that differ from their defaults."""
    return {field.name for field in fields(config) if getattr(config, field.name) != field.default}


def _refuse_beside(config: MergeConfig, other: str, names: Sequence[str], expected: str) -> None:
    if names:
        got = getattr(config, names[0])
        raise ValueError(f"--{_flag(names[0])}: expected {expected}, got {got!r} beside {other}; leave it out")


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _said(report: Mapping[str, Any], output: str) -> str:
    """One line on what the merge did: where it is, and how far it is from the plain soup."""
    summary = report["summary"]
    said = [f"merged {len(report['inputs'])} models by {report['method']} into {output}"]
    if summary["mean_angle_degrees"] is not None:
        said.append(f"mean angle {summary['mean_angle_degrees']:.1f} degrees")
    if summary["distance_to_soup"] is not None and len(report["inputs"]) > 1:
        said.append(f"{100 * summary['distance_to_soup']:.2g} % from {summary['distances_relative_to']}")
    return ", ".join(said)


@contextmanager
def _no_empty_folders(output: Path) -> Iterator[None]:
    """On an error, remove the folders above ``output`` that were made for it."""
    missing = [folder for folder in output.absolute().parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # another command may have put something into it
                folder.rmdir()
        raise


def _refuse_strange_output(config: MergeConfig, output: Path) -> None:
    from merging.plan import existing_parent

    existing_parent(output)
    if config.overwrite and output.is_dir() and any(output.iterdir()) and not (output / "merge.json").is_file():
        raise ValueError(
            f"--overwrite {output}: expected an earlier merge (merge.json), got another folder; choose a new --output"
        )


def _files(folders: list[Path]) -> list[Path]:
    """Weight files to hash, as the engine will ask for them."""
    files = [path for folder in folders for path in ([folder] if folder.is_file() else weight_files(folder).values())]
    return [path.resolve() for path in files]


def _located(name: str, config: MergeConfig, revision: str | None = None) -> Path:
    """A path as it is; the name of a backbone or a hub id through the models package, which is imported only then."""
    if Path(name).exists():
        return Path(name)
    from models.locate import base_folder

    return base_folder(name, cache=config.cache, offline=config.offline, revision=revision)
