"""The contract of every module: param, load, to, train, the tape, and that inference keeps nothing."""

import gc
import weakref
from collections.abc import Iterator
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from core.nn import SGD, Adam, Concat, Conv2d, DepthwiseGate, Module, ReLU, Residual, Sequential, Sigmoid, Tape
from core.nn.module import to_be_loaded
from tests.core.nn.errors import refused
from tests.core.nn.nets import LAYERS, LEARNING, NETWORKS, layers, pair
from tests.core.nn.oracles import assert_same, by_engine

every_layer = pytest.mark.parametrize("name", LAYERS)
every_learning_layer = pytest.mark.parametrize("name", LEARNING)
every_network = pytest.mark.parametrize("network", NETWORKS)


def made(name: str, generator: torch.Generator, dtype: torch.dtype = torch.float64, N: int = 3) -> tuple[Module, Tensor]:
    module, shape = layers(generator)[name]
    return module.to(dtype=dtype), torch.rand(N, *shape, generator=generator, dtype=torch.float64).to(dtype)


def step_back(module: Module, x: Tensor, generator: torch.Generator) -> None:
    """Forward and backward once, so that every weight has a derivative."""
    tape: Tape = []
    y = module(x, tape)
    module.backward(torch.randn(y.shape, generator=generator, dtype=x.dtype), tape)


def values(module: Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value, _ in module.param()}


def everything(module: Module) -> Iterator[tuple[object, ...]]:
    """All that a module holds, down to the version that a tensor gets with each change in place."""
    for key, held in vars(module).items():
        yield key, id(held), held._version if isinstance(held, Tensor) else repr(held)
    for _, inner in module.modules():
        yield from everything(inner)


def test_param_names_own_weights_and_those_of_layers_inside_by_their_place() -> None:
    network = Sequential(Conv2d(3, 4, 3), ReLU(), Residual(Conv2d(4, 4, 1, bias=False), Concat(Conv2d(4, 2, 1))))
    assert [name for name, _, _ in network.param()] == ["0.weight", "0.bias", "2.0.weight", "2.1.0.weight", "2.1.0.bias"]
    assert all(derivative is None for _, _, derivative in network.param())
    assert network.param()[0].value is network.layers[0].weight  # type: ignore[attr-defined]


@every_layer
def test_param_computes_nothing_and_changes_nothing(name: str, generator: torch.Generator) -> None:
    module, x = made(name, generator)
    for _ in range(2):  # before the first backward and after it
        before = list(everything(module))
        first, second = module.param(), module.param()
        assert list(everything(module)) == before
        assert [p.name for p in first] == [p.name for p in second]
        assert all(p.value is q.value and p.derivative is q.derivative for p, q in zip(first, second, strict=True))
        step_back(module, x, generator)


@every_learning_layer
def test_backward_replaces_the_last_derivatives_and_leaves_the_weights_and_dy(name: str, generator: torch.Generator) -> None:
    module, x = made(name, generator)
    before = values(module)
    dy = torch.randn(module(x).shape, generator=generator, dtype=x.dtype)
    kept = dy.clone(), x.clone()
    first = by_engine(module, x, dy)
    assert_same(by_engine(module, x, dy), first, 0)
    assert torch.equal(dy, kept[0])
    assert torch.equal(x, kept[1])
    assert all(torch.equal(value, before[name]) for name, value, _ in module.param())


@every_learning_layer
def test_sgd_moves_each_weight_against_its_own_derivative(name: str, generator: torch.Generator) -> None:
    module, x = made(name, generator)
    step_back(module, x, generator)
    expected = {name: value - 0.25 * derivative for name, value, derivative in module.param() if derivative is not None}
    module.train(SGD(0.25))
    assert len(expected) == len(module.param())
    for name, value, _ in module.param():
        torch.testing.assert_close(value, expected[name], rtol=1e-14, atol=1e-14)


@every_learning_layer
def test_adam_moves_each_weight_as_torch_does(name: str, generator: torch.Generator) -> None:
    module, x = made(name, generator)
    leaves = {name: value.clone().requires_grad_() for name, value, _ in module.param()}
    adam, by_torch = Adam(0.1, (0.8, 0.9), 1e-6), torch.optim.Adam(leaves.values(), 0.1, (0.8, 0.9), 1e-6)
    for _ in range(3):
        step_back(module, x, generator)
        for name, _, derivative in module.param():
            assert derivative is not None
            leaves[name].grad = derivative.clone()
        by_torch.step()
        module.train(adam)
        for name, value, _ in module.param():
            torch.testing.assert_close(value, leaves[name].detach(), rtol=1e-10, atol=1e-12)


@every_layer
def test_training_changes_nothing_where_nothing_is_learned(name: str, generator: torch.Generator) -> None:
    module, x = made(name, generator)
    if module.param():
        return
    step_back(module, x, generator)
    before = list(everything(module))
    module.train(SGD(1.0))
    assert list(everything(module)) == before


@pytest.mark.parametrize("rule", [SGD(0.1), Adam()], ids=["SGD", "Adam"])
def test_training_before_backward_is_refused_and_changes_nothing(rule: SGD | Adam, generator: torch.Generator) -> None:
    network = Sequential(Conv2d(3, 3, 1, generator=generator), Conv2d(3, 3, 1, generator=generator))
    step_back(network.layers[0], torch.rand(1, 2, 3, 3, generator=generator), generator)  # the second layer has none
    before, state = values(network), repr(vars(rule))
    with refused("`1.weight` has no derivative: call backward before train"):
        network.train(rule)
    assert all(torch.equal(value, before[name]) for name, value, _ in network.param())
    assert repr(vars(rule)) == state


@every_network
def test_load_copies_what_param_of_its_twin_gives(network: str, generator: torch.Generator) -> None:
    one, other = (NETWORKS[network](generator) for _ in range(2))
    other.to(dtype=torch.float64)
    assert not torch.equal(one.param()[0].value.double(), other.param()[0].value)
    other.load({name: value for name, value, _ in one.param()})
    for (_, a, _), (_, b, _) in zip(one.param(), other.param(), strict=True):
        assert b.dtype == torch.float64
        assert torch.equal(a.double(), b)
    x, _ = pair(generator)
    expected = other(x)
    one.train(lambda parameters: [p.value.zero_() for p in parameters])  # type: ignore[arg-type]
    assert torch.equal(other(x), expected), "the two must not share their weights"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"0.bias": None}, "weights ['0.bias'] are missing: this network needs 3 tensors and was given 2"),
        ({"0.bias": None, "2.weight": None}, "weights ['0.bias', '2.weight'] are missing: this network needs 3 tensors and was given 1"),
        (
            {"3.weight": (1,), "2.bias": (5,)},
            "weights ['2.bias', '3.weight'] are unknown to this network: load them into the architecture they were saved from",
        ),
        ({"2.weight": (1, 1, 5, 4)}, "`2.weight` has shape (1, 1, 5, 4), this network needs (1, 1, 4, 5)"),
        ({"0.bias": ()}, "`0.bias` has shape (), this network needs (4,)"),
    ],
)
def test_a_load_that_fails_says_why_and_changes_nothing(
    changes: dict[str, tuple[int, ...] | None], message: str, generator: torch.Generator
) -> None:
    network = Sequential(Conv2d(3, 4, 3, generator=generator), ReLU(), Conv2d(4, 5, 1, bias=False, generator=generator))
    given = {name: value + 1 for name, value, _ in network.param()}
    for name, shape in changes.items():
        if shape is None:
            del given[name]
        else:
            given[name] = torch.ones(shape)
    before, held = values(network), list(everything(network))
    with refused(message):
        network.load(given)
    assert list(everything(network)) == held
    assert all(torch.equal(value, before[name]) for name, value, _ in network.param())


@every_learning_layer
def test_to_moves_every_weight_forgets_derivatives_and_returns_the_module(
    name: str, device: torch.device, generator: torch.Generator
) -> None:
    module, x = made(name, generator)
    step_back(module, x, generator)
    before = values(module)
    assert module.to(device, torch.bfloat16) is module
    for name, value, derivative in module.param():
        assert (value.device.type, value.dtype, derivative) == (device.type, torch.bfloat16, None)
        assert torch.equal(value.cpu(), before[name].to(torch.bfloat16))
    assert module.to(dtype=torch.float32).param()[0].value.device.type == device.type
    assert module.to("cpu").param()[0].value.dtype == torch.float32


@every_layer
def test_inference_keeps_nothing(name: str, generator: torch.Generator) -> None:
    module, x = made(name, generator)
    step_back(module, x, generator)
    before = list(everything(module))
    x = x[1:].clone()  # another batch than the one trained on, down to its size
    y = module(x)
    assert list(everything(module)) == before
    gone = weakref.ref(x), weakref.ref(y)
    del x, y
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


@every_network
def test_inference_leaves_no_tensor_behind(network: str, generator: torch.Generator) -> None:
    net, (x, _) = NETWORKS[network](generator), pair(generator, dtype=torch.float32)

    def alive() -> int:
        gc.collect()
        return sum(type(thing) is Tensor for thing in gc.get_objects())

    net(x)
    before = alive()
    for _ in range(3):
        net(x)
    assert alive() <= before  # three runs that kept one thing each would hold three more


@every_layer
def test_the_tape_alone_carries_what_backward_needs(name: str, generator: torch.Generator) -> None:
    """Two forwards may stand open at once: each tape gives its own derivatives back."""
    module, x = made(name, generator)
    other = x.flip(0, 1)
    tapes: tuple[Tape, Tape] = [], []
    y, z = module(x, tapes[0]), module(other, tapes[1])
    dy = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    dx = module.backward(dy, tapes[0])
    assert torch.equal(y, module(x))
    assert_same((y, {"x": dx, **derivatives(module)}), by_engine(module, x, dy), 0)
    dx = module.backward(dy, tapes[1])
    assert_same((z, {"x": dx, **derivatives(module)}), by_engine(module, other, dy), 0)


def derivatives(module: Module) -> dict[str, Tensor]:
    return {name: derivative for name, _, derivative in module.param() if derivative is not None}


@every_network
def test_one_network_serves_four_threads(network: str, generator: torch.Generator) -> None:
    net = NETWORKS[network](generator).to(dtype=torch.float64)
    pictures = [pair(generator, N, 4 * N, 8)[0] for N in (1, 2, 3, 4)]
    alone = [net(x) for x in pictures]
    answers: dict[int, list[Tensor]] = {i: [] for i in range(4)}
    start = Barrier(4)

    def serve(i: int) -> None:
        start.wait()
        for _ in range(5):
            answers[i].append(net(pictures[i]))

    crew = [Thread(target=serve, args=(i,)) for i in range(4)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    for i, expected in enumerate(alone):
        assert len(answers[i]) == 5
        for y in answers[i]:
            torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", ["forward", "backward"])
def test_a_bare_module_promises_nothing(step: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {"forward": (torch.zeros(1),), "backward": (torch.zeros(1), [])}
    with pytest.raises(NotImplementedError):
        getattr(Module(), step)(*arguments[step])
    assert Module().param() == []
    assert Sequential(ReLU(), Sigmoid()).param() == []


@pytest.mark.parametrize("name", LAYERS)
def test_derive_keeps_what_backward_keeps(name: str, generator: torch.Generator) -> None:
    module, shape = layers(generator)[name]
    x = torch.randn(2, *shape, generator=generator)
    tape: Tape = []
    y = module.forward(x, tape)
    dy = torch.randn(y.shape, generator=generator)
    again = list(tape)
    module.backward(dy, tape)
    expected = [p.derivative.clone() for p in module.param() if p.derivative is not None]
    module.to()  # forgets the derivatives
    module.derive(dy, again)
    assert not again
    assert len(expected) == len(module.param())
    assert all(p.derivative is not None and torch.equal(p.derivative, d) for p, d in zip(module.param(), expected, strict=True))


def test_nothing_is_left_to_derive_without_layers() -> None:
    Sequential().derive(torch.ones(1, 1, 1, 1), [])


@pytest.mark.parametrize("make", [lambda g: Conv2d(3, 4, 5, generator=g), lambda g: DepthwiseGate(4, g)])
def test_what_is_to_be_loaded_draws_no_numbers_and_others_do(make: Any, generator: torch.Generator) -> None:
    before = generator.get_state()
    with to_be_loaded():
        module = make(generator)
        assert torch.equal(generator.get_state(), before)
        other = Thread(target=make, args=(generator,))  # in its own context
        other.start()
        other.join()
        assert not torch.equal(generator.get_state(), before)
    drawn = make(generator)
    module.load({p.name: p.value for p in drawn.param()})
    assert all(torch.equal(a.value, b.value) for a, b in zip(module.param(), drawn.param(), strict=True))
