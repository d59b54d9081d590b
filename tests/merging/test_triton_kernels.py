import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TRUNCATION = 2**-7
"""Triton's interpreter cuts float32 to bfloat16 where a GPU rounds; the test of the compiled kernels looks at the latter."""

CASES = (
    "bf16", "bf16-base", "fp16", "fp16-base", "fp32", "fp32-base", "fp64", "fp64-base", "one-input", "five-inputs",
    "unaligned", "three-results", "nine-results", "narrower", "narrowest", "mixed", "groups", "rows",
)  # fmt: skip


@pytest.fixture(scope="module")
def interpreted() -> Any:
    """What ``interpreted_kernels.py`` found."""
    assert importlib.util.find_spec("triton") is not None, "triton is a development dependency"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", str(HERE / "interpreted_kernels.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_agree_with_plain_torch(interpreted: Any, case: str) -> None:
    found = interpreted[case]
    assert found["products"] < 1e-13
    assert found["angles"] < 1e-12
    assert found["undefined"] == 0
    assert found["equal"] == 0
    assert found["repeats"] == 0, "a second run has other bits"
    limit = 1e-6 if case != "narrower" else 2**-10
    assert found["values"] < (TRUNCATION if found["truncated"] else limit)
    assert found["results"] == {"three-results": 3, "nine-results": 9}.get(case, 1)


def test_every_case_is_looked_at(interpreted: Any) -> None:
    assert sorted(interpreted) == sorted([*CASES, "copies", "flags", "cancelling"])


def test_copies_are_bit_for_bit(interpreted: Any) -> None:
    assert interpreted["copies"]["copied"] == 1
    assert interpreted["copies"]["base"] == 1
    assert interpreted["copies"]["summed"] < 1e-6


def test_what_cannot_be_merged_is_named(interpreted: Any) -> None:
    for kind in ("nan", "infinite"):
        assert interpreted["flags"][kind].startswith("input 1: tensor b: expected finite values, got 1 that are NaN")
    assert interpreted["flags"]["overflow"].startswith("tensor b: expected values that fit into torch.float16, got 600")


def test_a_sum_that_cancels_keeps_its_digits(interpreted: Any) -> None:
    assert interpreted["cancelling"]["error"] < 1e-7


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from merging import triton_kernels as kernels

def compiled(kernel, constants, values):
    signature = {name: "constexpr" if name in constants else values[name] for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]

bf16 = dict(N=2, HAS_BASE=0, CHUNK=2**15, DTYPE=tl.bfloat16, BASE_DTYPE=tl.bfloat16, BLOCK=kernels.BLOCK,
            FOLD=kernels.FOLD, INDEX_BITS=32, ALIGNED=True)
tables = dict.fromkeys(["chunks", "sizes", "slots", "addresses", "pairs", "targets"], "*i64")
flags = dict.fromkeys(["copies", "wide", "overflows"], "*i32")
print(compiled(kernels.measure_kernel, dict(bf16, PAIRS=1), dict(tables, partials="*fp64")))
print("=" * 20)
print(compiled(kernels.sum_kernel, dict(bf16, TIMES=1, OUT=tl.bfloat16, NARROW=tl.float32, TAIL=kernels.TAIL),
               dict(tables, **flags, coefficients="*fp64", runs="i32")))
"""


@pytest.mark.slow
def test_compiled_kernels_load_16_bytes_at_once_and_round_to_nearest(tmp_path: Path) -> None:
    """Compiled for sm_90, which needs no GPU."""
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", str(script)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    measure, combine = run.stdout.split("=" * 20)
    assert "ld.global.v4.b32" in measure
    assert not re.search(r"\b(atom|red)\.", measure + combine)
    assert "ld.global.v4.b32" in combine
    assert "st.global.v4.b32" in combine
    assert re.search(r"cvt\.rn\.bf16(x2)?\.f32", combine)
    assert "fma.rn.f64" in measure
