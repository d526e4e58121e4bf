"""Every operator that torch runs in training and inference is recorded: no library convolution, no `_backward`, no tensor with a grad."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core import kernels, networks
from core.nn import L1, MSE, SGD, Adam, Charbonnier, Conv2d, Module, ReLU, Rule, Sequential, SpaceToDepth, Tape, products
from tests.core.nn.nets import NETWORKS, layers

FOREIGN = re.compile(r"conv(?!ert)|_backward")


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the name of each operator that runs, and of those that are not the engine's to run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[str] = []
        self.foreign: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators.append(func.name())
        if FOREIGN.search(func.name()):
            self.foreign.append(func.name())
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves((args, kwargs, result))):
            self.foreign.append(f"{func.name()} with a tensor that requires grad")
        return result


def subjects() -> Iterator[tuple[str, Callable[[], Module], tuple[int, int, int]]]:
    """Name, how to make it, (H, W, C) of what it takes."""
    for name in layers(torch.Generator()):
        yield name, lambda name=name: layers(torch.Generator())[name][0], layers(torch.Generator())[name][1]  # type: ignore[misc]
    for name, make in NETWORKS.items():
        yield f"small {name}", lambda make=make: make(torch.Generator()), (8, 12, 3)  # type: ignore[misc]
    yield "the denoiser", networks.unet, (16, 24, 4)
    yield "the gated denoiser", networks.gated, (16, 24, 4)
    yield "the deep denoiser", networks.deep, (16, 24, 4)
    yield "the experiment's", networks.noise2noise, (16, 24, 3)


every_subject = pytest.mark.parametrize(("make", "shape"), [pytest.param(make, shape, id=name) for name, make, shape in subjects()])


def train(module: Module, loss: MSE | L1 | Charbonnier, rule: Rule, x: Tensor) -> Recorder:
    recorder = Recorder()
    with recorder:
        for batch in (x, x[:-1]):
            tape: Tape = []
            y = module.forward(batch, tape)
            target = torch.zeros_like(y)
            loss.forward(y, target)
            module.backward(loss.backward(y, target), tape)
            module.train(rule)
    return recorder


@every_subject
@pytest.mark.parametrize("way", ["the fastest", "products"])
@pytest.mark.parametrize(
    ("loss", "rule", "dtype"),
    [(MSE(), SGD, torch.float32), (L1(), Adam, torch.bfloat16), (Charbonnier(), Adam, torch.float64)],
    ids=["MSE, SGD, float32", "L1, Adam, bfloat16", "Charbonnier, Adam, float64"],
)
def test_a_training_step_runs_nothing_foreign(
    make: Callable[[], Module],
    shape: tuple[int, int, int],
    loss: MSE | L1 | Charbonnier,
    rule: type[SGD],
    dtype: torch.dtype,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "products":
        monkeypatch.setattr(kernels, "take", lambda factors, device: None)
    module = make()
    recorder = train(module, loss, rule(1e-3), torch.rand(2, *shape).to(dtype))
    assert recorder.foreign == []
    products_ran = [name for name in recorder.operators if re.match(r"aten::(mm|addmm|bmm)\b", name)]
    if way == "products":
        matrices = [p for p in module.param() if p.value.dim() == 4]
        assert bool(products_ran) == bool(matrices), "the recorder must see the matrix products of each layer that learns a matrix"


@every_subject
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_inference_runs_nothing_foreign(make: Callable[[], Module], shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    module, x = make().to(dtype=dtype), torch.rand(2, *shape).to(dtype)
    with Recorder() as recorder:
        y = module(x)
    assert recorder.foreign == []
    assert recorder.operators != []
    assert not y.requires_grad


def small() -> tuple[Module, Tensor]:
    return NETWORKS["unet"](torch.Generator()), torch.rand(2, 4, 8, 3)


def test_a_library_convolution_put_in_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def foreign(x: Tensor, weight: Tensor, bias: Tensor | None, stride: products.Pair, border: products.Border) -> Tensor:
        picture = products.pad(x, border).permute(0, 3, 1, 2)
        return F.conv2d(picture, weight.permute(3, 2, 0, 1), bias, stride).permute(0, 2, 3, 1).contiguous()

    monkeypatch.setattr(kernels, "take", lambda factors, device: None)
    module, x = small()
    expected = module(x)
    monkeypatch.setattr(products, "convolve", foreign)
    torch.testing.assert_close(module(x), expected)  # it computes the same, and only the recorder can tell
    found = train(module, MSE(), SGD(0.1), x).foreign
    assert found != []
    assert all("convolution" in name for name in found)


def test_an_autograd_backward_put_in_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def foreign(self: ReLU, dy: Tensor, tape: Tape) -> Tensor:
        y = tape.pop().requires_grad_()
        (dx,) = torch.autograd.grad(y.relu(), y, dy)
        assert isinstance(dx, Tensor)
        return dx

    monkeypatch.setattr(ReLU, "backward", foreign)
    module, x = Sequential(SpaceToDepth(2), ReLU(), Conv2d(12, 5, 1)), torch.rand(2, 4, 8, 3)
    found = train(module, MSE(), SGD(0.1), x).foreign
    assert "aten::threshold_backward" in found
    assert "aten::relu with a tensor that requires grad" in found


def test_a_backward_operator_called_by_hand_is_found() -> None:
    with Recorder() as recorder:
        torch.ops.aten.sigmoid_backward(torch.ones(3), torch.rand(3))
    assert recorder.foreign == ["aten::sigmoid_backward"]


def test_a_tensor_that_requires_grad_is_found() -> None:
    with Recorder() as recorder:
        MSE().forward(torch.rand(3, requires_grad=True), torch.zeros(3))
    assert "aten::sub.Tensor with a tensor that requires grad" in recorder.foreign
