"""The Triton kernels compute what torch's functions and autograd do: on a GPU, or else in Triton's interpreter in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.kernels import gpu
from tests.core.nn import gpu_kernels

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")

SHAPES = gpu_kernels.SHAPES + gpu_kernels.LARGER * torch.cuda.is_available()
NAMES = [f"{name} {shape}" for name in gpu_kernels.DTYPES for shape in (*SHAPES, "on few programs")]
SUMS = ("factors", "gate, dbias", "depthwise, dweight", "depthwise, dbias")
"""In float32, of what is given in any dtype."""
FROM_ROUNDED = ("normalised, dx", "normalised, dx added", "depthwise, dx", "depthwise, dweight", "depthwise, dbias")
"""Computed from what forward has rounded to the dtype."""


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    if torch.cuda.is_available():
        return gpu_kernels.all_errors(torch.device("cuda"))
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", gpu_kernels.__name__, dtype],
            cwd=Path(__file__).parents[3],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for dtype in gpu_kernels.DTYPES
    ]
    found: dict[str, dict[str, float]] = {}
    for process in started:
        out, said = process.communicate()
        assert process.returncode == 0, said
        found |= json.loads(out)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_kernels_give_what_torch_does_but_for_the_dtypes_last_bits(name: str, errors: dict[str, dict[str, float]]) -> None:
    fine, rough = torch.finfo(torch.float32).eps, torch.finfo(gpu_kernels.DTYPES[name.split()[0]]).eps
    for what, error in errors[name].items():
        rounded = 2 * rough if what in FROM_ROUNDED else 0.0 if what in SUMS else rough  # the interpreter cuts bfloat16 off
        assert error <= rounded + 8 * fine, what


def test_each_was_checked(errors: dict[str, dict[str, float]]) -> None:
    assert sorted(errors) == sorted(NAMES)
    assert {len(found) for found in errors.values()} == {12}


def test_without_the_interpreter_they_take_a_gpus_tensors_alone() -> None:
    assert not gpu.INTERPRETED
    assert not gpu.takes(torch.zeros(1))
    assert not gpu.takes(torch.zeros(1, dtype=torch.float64, device="meta"))
