"""mergekit, the peer, in an environment of its own: it is no dependency of the product."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import ROOT, Job

ENVIRONMENT = ROOT / ".venv-mergekit"
VERSION = "0.1.5"


def command() -> Path:
    """Return its command ``mergekit-yaml``; the environment is made when it is missing."""
    installed = ENVIRONMENT / f"installed-{VERSION}"
    if not installed.exists():
        python = ENVIRONMENT / "bin" / "python"
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        # torch first and by itself, as in the Makefile: a resolver that is free to choose takes gigabytes of CUDA
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), "torch"], check=True)
        subprocess.run([*pip, f"mergekit=={VERSION}", f"torch=={_torch()}"], check=True)
        installed.touch()
    return ENVIRONMENT / "bin" / "mergekit-yaml"


def recipe(method: str, inputs: Sequence[Path]) -> str:
    """Return a recipe for a merge of the inputs in bfloat16, with equal weights or halfway."""
    models = ", ".join(
        f"{{model: {path}, parameters: {{weight: 0.5}}}}" if method == "linear" else f"{{model: {path}}}"
        for path in inputs
    )
    lines = [f"models: [{models}]", f"merge_method: {method}", "dtype: bfloat16"]
    if method == "slerp":
        lines += [f"base_model: {inputs[0]}", "parameters: {t: 0.5}"]
    return "\n".join(lines) + "\n"


def peers(text: str, output: Path) -> Job:
    """Return mergekit's merge by a recipe, which is written beside the output."""
    file = output.with_name(f"{output.name}.yaml")
    file.write_text(text)
    return Job([str(command()), str(file), str(output)], output)


def _torch() -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("torch=="))
