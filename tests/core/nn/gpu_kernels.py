"""The Triton kernels beside torch's functions and autograd in float64. Run by itself, with TRITON_INTERPRET=1 and without a GPU, it writes
how far off they are in the dtypes that it is told, as JSON: {dtype and shape: {what: the worst error beside the largest number}}.

Each tensor lies amid NaN, and what a kernel is to write is NaN before: so whatever it reads too far, leaves out or writes elsewhere shows.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels import gpu
from core.nn.gated import EPSILON

Shape = tuple[int, int, int, int]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL: Shape = (3, 2, 3, 3)
SHAPES: list[Shape] = [(2, 5, 9, 32), (1, 1, 1, 16), (1, 18, 3, 72), (1, 3, 20, 5), SMALL]
"""(N, H, W, C): fewer and more than a program has of rows, columns and channels; small, for an interpreter takes a second for a thousand
numbers."""
LARGER: list[Shape] = [(2, 20, 20, 200), (1, 33, 17, 128), (1, 3, 70, 64), (2, 61, 47, 65)]
"""For a GPU."""
MARGIN = 64


class Guarded:
    """Tensors amid NaN."""

    def __init__(self) -> None:
        self.held: list[tuple[Tensor, int]] = []

    def empty(self, *size: Any, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        whole = torch.full((shape.numel() + 2 * MARGIN,), torch.nan, dtype=dtype or torch.float32, device=device)
        self.held.append((whole, shape.numel()))
        return whole[MARGIN : MARGIN + shape.numel()].view(shape)

    def like(self, x: Tensor) -> Tensor:
        return self.empty(x.shape, dtype=x.dtype, device=x.device)

    def copy(self, x: Tensor) -> Tensor:
        return self.like(x).copy_(x)

    def unharmed(self) -> bool:
        return all(bool(torch.cat((whole[:MARGIN], whole[MARGIN + size :])).isnan().all()) for whole, size in self.held)


@contextmanager
def guarded() -> Iterator[Guarded]:
    """What the kernels' door asks memory for, it gets amid NaN."""
    guard = Guarded()
    with mock.patch.object(torch, "empty", guard.empty), mock.patch.object(torch, "empty_like", guard.like):
        yield guard
    assert guard.unharmed(), "a kernel wrote where nothing is to be written"


def errors(dtype: torch.dtype, shape: Shape, device: torch.device, programs: int = gpu.PROGRAMS, tile: int = gpu.TILE) -> dict[str, float]:
    """By what was computed, the worst error beside the largest number."""
    g = torch.Generator().manual_seed(sum(shape))
    *place, C = shape

    def made(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=g).to(of)

    given = {"x": made(*shape), "dy": made(*shape), "addend": made(*shape), "wide": made(*place, 2 * C)}
    weights = {"weight": made(3, 3, 2 * C, of=torch.float32), "bias": made(2 * C, of=torch.float32)}
    expected, got = exactly(**{name: t.double() for name, t in (given | weights).items()}), dict[str, Tensor]()
    with mock.patch.multiple(gpu, PROGRAMS=programs, TILE=tile), guarded() as guard:
        x, dy, addend, wide, weight, bias = (guard.copy(t.to(device)) for t in (given | weights).values())
        assert gpu.takes(x)
        got["normalised"], got["factors"] = gpu.normalised(x, EPSILON)
        for name, added in (("normalised, dx", None), ("normalised, dx added", addend)):
            got[name] = gpu.normalised_backward(dy, got["normalised"], got["factors"], added)
        got["gate"] = gpu.gate(wide, bias)
        got["gate, dx"], got["gate, dbias"] = gpu.gate_backward(wide, dy, bias)
        got["depthwise"], filtered = gpu.depthwise_gate(wide, weight, bias, True)
        alone, nothing = gpu.depthwise_gate(wide, weight, bias, False)
        assert torch.equal(alone, got["depthwise"])
        assert nothing.numel() == 0
        got["depthwise, filtered"] = filtered
        got["depthwise, dx"], got["depthwise, dweight"], got["depthwise, dbias"] = gpu.depthwise_gate_backward(wide, filtered, dy, weight)
        if shape == SMALL or device.type != "cpu":
            turned, by_y = (t.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2) for t in (wide, dy))
            again = gpu.depthwise_gate_backward(turned, gpu.depthwise_gate(turned, weight, bias, True)[1], by_y, weight)
            for name, value in zip(("depthwise, dx", "depthwise, dweight", "depthwise, dbias"), again, strict=True):
                assert torch.equal(value, got[name]), f"{name}, where rows and columns lie the other way round"
    for name in ("factors", "gate, dbias", "depthwise, dweight", "depthwise, dbias"):
        assert got[name].dtype == torch.float32, name
    return {name: error(got[name], expected[name]) for name in expected}


def exactly(x: Tensor, dy: Tensor, addend: Tensor, wide: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """What the kernels are to give, by torch, in float64."""
    for leaf in (x, wide, weight, bias):
        leaf.requires_grad_()
    C = x.shape[3]
    normalised = F.rms_norm(x, (C,), eps=EPSILON)
    (dx,) = torch.autograd.grad(normalised, x, dy)
    gated = torch.mul(*(wide + bias).chunk(2, 3))
    dwide, dbias = torch.autograd.grad(gated, (wide, bias), dy)
    kernels = weight.permute(2, 0, 1)[:, None]
    filtered = F.conv2d(wide.permute(0, 3, 1, 2), kernels, bias, padding=1, groups=2 * C).permute(0, 2, 3, 1)
    depthwise = torch.mul(*filtered.chunk(2, 3))
    by_filtered = torch.autograd.grad(depthwise, (wide, weight, bias), dy)
    return {
        "normalised": normalised.detach(),
        "factors": (x.detach().square().mean(3, keepdim=True) + EPSILON) ** -0.5,
        "normalised, dx": dx,
        "normalised, dx added": dx + addend,
        "gate": gated.detach(),
        "gate, dx": dwide,
        "gate, dbias": dbias,
        "depthwise": depthwise.detach(),
        "depthwise, filtered": filtered.detach(),
        **dict(zip(("depthwise, dx", "depthwise, dweight", "depthwise, dbias"), by_filtered, strict=True)),
    }


def error(got: Tensor, expected: Tensor) -> float:
    """NaN if anything is."""
    assert got.shape == expected.shape
    return float((got.cpu().double() - expected).abs().max() / expected.abs().max())


def all_errors(device: torch.device, names: Iterable[str] = DTYPES) -> dict[str, dict[str, float]]:
    shapes = SHAPES if device.type == "cpu" else SHAPES + LARGER
    found = {f"{name} {shape}": errors(DTYPES[name], shape, device) for name in names for shape in shapes}
    few = {f"{name} on few programs": errors(DTYPES[name], (1, 18, 9, 8), device, 3, 64) for name in names}  # each has much to do
    return found | few


if __name__ == "__main__":
    print(json.dumps(all_errors(torch.device("cpu"), sys.argv[1:])))
