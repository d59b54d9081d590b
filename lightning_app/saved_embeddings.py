"""``--embeddings``: what the evaluate command measured, as a file of matrices and a file of what their rows are.

A .safetensors file has a float32 matrix (n, d) for every model and suite under the name ``MODEL/SUITE``; a .npy file has
the one matrix of one model on one suite. Beside it, with ``.json`` after its name, stand the texts and labels of every
suite, the prompt and revision of every model, and the hashes of both.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.suites import Suite
from lightning_app.config import EvaluateConfig
from lightning_app.measurement import Measured
from storage.array_file import read_array, write_array
from storage.atomic import replacing_file
from storage.hashing import sha256_of
from storage.json_file import read_json, write_json
from storage.tensor_file import read_header, read_tensors, write_tensors

ENDINGS = (".safetensors", ".npy")


@dataclass(frozen=True, kw_only=True)
class EmbeddingsFile:
    """A place for embeddings, found to be usable before anything is measured."""

    path: Path
    suite: str | None
    """The one suite of a .npy file; None for all of them."""
    inside: Path | None
    """Its place in the folder of the report, when it lies there: that folder is built elsewhere and then renamed."""

    @property
    def described(self) -> Path:
        """The file of texts and labels beside it."""
        return _beside(self.path)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def find_embeddings_file(config: EvaluateConfig, names: Sequence[str]) -> EmbeddingsFile | None:
    """The file that ``--embeddings`` asks for, or None.

    Args:
        config: Of the command.
        names: The models to be measured, the base among them.

    Raises:
        ValueError: another ending, a .npy file for more than one model or suite, a place that no file can have.

    Example:
        >>> config = EvaluateConfig(models=("tiny-llm",), suite=("large",), embeddings="vectors.npy")
        >>> find_embeddings_file(config, ["tiny-llm"]).suite
        'large'
    """
    if config.embeddings is None:
        return None
    # Not resolve(): a link is replaced itself, not what it points to.
    path, output = (Path(os.path.abspath(each)) for each in (config.embeddings, config.output))  # noqa: PTH100
    what = f"--embeddings {config.embeddings}"
    if path.suffix not in ENDINGS:
        raise ValueError(f"{what}: expected a name that ends with .safetensors or .npy, got {path.suffix or 'none'!r}")
    if path == output or path in output.parents or path.is_dir():
        raise ValueError(f"{what}: expected a file, got a folder; give a name inside it")
    if (above := next(folder for folder in path.parents if os.path.lexists(folder))) and not above.is_dir():
        raise ValueError(f"{what}: expected a place in a folder, got the file {above} above it; choose another name")
    suite = _only_suite(config, names, what) if path.suffix == ".npy" else None
    return EmbeddingsFile(path=path, suite=suite, inside=_inside(path, output))


def _inside(path: Path, folder: Path) -> Path | None:
    """The place of ``path`` in ``folder``, also by way of links; None if it lies elsewhere."""
    for inner, outer in ((path, folder), (path.parent.resolve() / path.name, folder.parent.resolve() / folder.name)):
        if inner.is_relative_to(outer):
            return inner.relative_to(outer)
    return None


def _only_suite(config: EvaluateConfig, names: Sequence[str], what: str) -> str:
    """The suite of a .npy file: the one that ``--suite`` names, or the paper's, which is always measured."""
    suites = list(dict.fromkeys(config.suite)) or ["paper"]
    for kind, flag, found in (("model", "MODEL", list(names)), ("suite", "--suite", suites)):
        if len(found) != 1:
            raise ValueError(
                f"{what}: expected one {kind} ({flag}) for a .npy file, got {len(found)} ({', '.join(found[:4])}); "
                "give one, or a name that ends with .safetensors"
            )
    return Path(suites[0]).stem if Path(suites[0]).suffix in (".jsonl", ".csv") else suites[0]


def check_free(file: EmbeddingsFile, *, overwrite: bool) -> None:
    """Refuse to replace what stands there, unless it is asked for; a folder of the report is replaced as a whole.

    Raises:
        ValueError: either file exists.
    """
    if overwrite or file.inside is not None:
        return
    for path in (file.path, file.described):
        if os.path.lexists(path):
            raise ValueError(
                f"--embeddings {path}: expected a name that is free, got one that exists; choose another or add --overwrite"
            )


def check_kept(file: EmbeddingsFile) -> None:
    """Embeddings of a finished evaluation are still where it wrote them.

    Raises:
        ValueError: either file is absent, or the matrices are others.
    """
    for path in (file.path, file.described):
        if not path.is_file():
            raise ValueError(
                f"--resume: expected the embeddings of the finished evaluation, found no {path}; "
                "measure again with --overwrite instead"
            )
    described = read_json(file.described)
    if not isinstance(described, Mapping) or described.get("sha256") != sha256_of(file.path):
        raise ValueError(
            f"--resume: expected {file.path} as {file.described.name} describes it, got another content; "
            "measure again with --overwrite instead"
        )


def describe(
    measured: Sequence[Measured],
    suites: Mapping[str, Suite],
    *,
    revisions: Mapping[str, tuple[str, str]],
    truncate_dim: int | None = None,
) -> dict[str, Any]:
    """What the rows of the matrices are: texts and labels by suite, prompts and revisions by model.

    Args:
        measured: The models; those that failed are listed with their reasons and have no matrix.
        suites: By name.
        revisions: Hub id and commit of the models that are snapshots of the hub.
        truncate_dim: Components that every embedding was cut to.

    Returns:
        Plain values. The ``texts_sha256`` of a suite is of its texts with line feeds between them (its first 40 digits
        are the ``dataset_revision`` of MTEB-shaped files), ``labels_sha256`` of the JSON list of its labels.
    """
    models: dict[str, Any] = {}
    for each in measured:
        if each.embeddings:
            name = each.row["name"]
            hub = dict(zip(("hub_id", "revision"), revisions[name], strict=True)) if name in revisions else {}
            models[name] = {"prompt": each.row["prompt"], "dimensions": each.row["dimensions"], **hub}
    return {
        "embarc": version("embarc"),
        "truncate_dim": truncate_dim,
        "models": models,
        "failed": {each.row["name"]: each.row["error"] for each in measured if "error" in each.row},
        "suites": {
            name: {
                "texts_sha256": _sha256("\n".join(suite.texts)),
                "labels_sha256": _sha256(json.dumps(suite.labels)),
                "families": list(suite.families),
                "labels": list(suite.labels),
                "texts": list(suite.texts),
            }
            for name, suite in suites.items()
        },
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def saving_embeddings(
    file: EmbeddingsFile, measured: Sequence[Measured], description: Mapping[str, Any], *, building: Path
) -> Iterator[None]:
    """Write both files, read them back and compare; they get their names when the block ends without an error.

    Args:
        file: Where to.
        measured: The models; those that failed are left out.
        description: Of `describe`.
        building: The folder that becomes the report's.

    Raises:
        ValueError: what is read back is not what was measured.
    """
    path = file.path if file.inside is None else building / file.inside
    suites = description["suites"] if file.suite is None else {file.suite: description["suites"][file.suite]}
    tensors = {
        f"{each.row['name']}/{suite}": each.embeddings[suite]
        for each in measured
        if each.embeddings
        for suite in suites
    }
    content = {"file": path.name, **description, "suites": suites}
    with ExitStack() as stack:
        matrices, described = (stack.enter_context(replacing_file(each)) for each in (path, _beside(path)))
        if path.suffix == ".npy":
            _write_npy(matrices, tensors, path)
        else:
            _write_safetensors(matrices, tensors, _metadata(content), path)
        write_json(described, {"sha256": sha256_of(matrices), **content})
        yield


def _write_npy(temporary: Path, tensors: Mapping[str, Tensor], path: Path) -> None:
    (matrix,) = tensors.values()
    write_array(temporary, matrix.numpy())
    _check_read_back(tensors, {name: torch.from_numpy(read_array(temporary)) for name in tensors}, path)


def _write_safetensors(temporary: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    write_tensors(temporary, tensors, metadata)
    _check_read_back(tensors, read_tensors(temporary), path)
    if read_header(temporary).metadata != metadata:
        raise ValueError(f"{path}: expected the metadata that was written, read back another; check the disk")


def _metadata(content: Mapping[str, Any]) -> dict[str, str]:
    """Strings only, as the format has it; everything but the texts and the labels themselves."""
    suites = {
        name: {key: suite[key] for key in ("texts_sha256", "labels_sha256")}
        for name, suite in content["suites"].items()
    }
    parts = {key: json.dumps(content[key], ensure_ascii=False) for key in ("truncate_dim", "models")}
    return {"format": "pt", "embarc": content["embarc"], **parts, "suites": json.dumps(suites)}


def _check_read_back(written: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in written.items():
        if tensor.dtype != torch.float32 or name not in found or not torch.equal(found[name], tensor):
            raise ValueError(f"{path}: expected {name} in float32 as measured, read back another; check the disk")
