"""Whole networks: all gradients against torch and finite differences, ten golden losses, and the same bits from the same seed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from core.nn import L1, MSE, SGD, Adam, Charbonnier, Module, Sequential, Tape
from tests.core.nn.gradients import FarReLU, check_gradients
from tests.core.nn.nets import NETWORKS, concatenating, pair
from tests.core.nn.oracles import assert_same, by_engine, by_torch, functional

every_network = pytest.mark.parametrize("network", NETWORKS)

GOLDEN = {
    "SGD": [
        0.19624104157385347,
        0.16413092914411184,
        0.15375038147695122,
        0.1481148579747761,
        0.14438392190375235,
        0.14141848351132724,
        0.13884727659061363,
        0.13653686833491907,
        0.13442728621746067,
        0.13249614762920084,
    ],
    "Adam": [
        0.19624104157385347,
        0.15770222898319441,
        0.15972563886445618,
        0.14518448183929547,
        0.13205197317456857,
        0.12762239372966896,
        0.1251155901562253,
        0.12104186591310048,
        0.11706378774080926,
        0.11267388853678365,
    ],
}
"""Losses of ten steps of `concatenating` from seed 7, made once by `by_autograd` below with torch 2.13 in float64."""

RULES: dict[str, Callable[[], SGD | Adam]] = {"SGD": lambda: SGD(0.5), "Adam": lambda: Adam(0.01)}


def step(network: Module, loss: MSE | L1 | Charbonnier, rule: SGD | Adam, x: Tensor, target: Tensor) -> Tensor:
    tape: Tape = []
    y = network.forward(x, tape)
    value = loss.forward(y, target)
    network.backward(loss.backward(y, target), tape)
    network.train(rule)
    return value


def golden_problem() -> tuple[Sequential, Tensor, Tensor]:
    g = torch.Generator().manual_seed(7)
    network = concatenating(g)
    network.to(dtype=torch.float64)
    network.load({name: 0.2 * torch.randn(value.shape, generator=g, dtype=torch.float64) for name, value, _ in network.param()})
    return network, *pair(g, 3, 8, 12)


def by_autograd(optimiser: str) -> list[float]:
    """The golden losses as torch's functions, autograd and optimisers have them."""
    network, x, target = golden_problem()
    leaves = {name: value.clone().requires_grad_() for name, value, _ in network.param()}
    rule = torch.optim.SGD(leaves.values(), 0.5) if optimiser == "SGD" else torch.optim.Adam(leaves.values(), 0.01)
    losses = []
    for _ in range(10):
        y = functional(network, x.permute(0, 3, 1, 2), leaves).permute(0, 2, 3, 1)
        loss = torch.nn.functional.mse_loss(y, target)
        rule.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        rule.step()
        losses.append(loss.item())
    return losses


@every_network
def test_all_gradients_of_a_network_equal_torch_in_whole_and_last_batch(network: str, generator: torch.Generator) -> None:
    net = NETWORKS[network](generator).to(dtype=torch.float64)
    for _, value, _ in net.param():
        value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype), alpha=0.02)  # no bias stays at zero
    for N in (3, 2):
        x, target = pair(generator, N)
        dy = Charbonnier().backward(net(x), target)
        assert_same(by_engine(net, x, dy), by_torch(net, x, dy))


@every_network
def test_all_gradients_of_a_network_agree_with_finite_differences(network: str, generator: torch.Generator) -> None:
    net = NETWORKS[network](generator, FarReLU).to(dtype=torch.float64)
    check_gradients(net, pair(generator, 1, 4, 8)[0], generator)


@pytest.mark.parametrize("rule", RULES)
def test_ten_golden_losses(rule: str) -> None:
    network, x, target = golden_problem()
    optimiser = RULES[rule]()
    assert [step(network, MSE(), optimiser, x, target).item() for _ in range(10)] == pytest.approx(GOLDEN[rule], rel=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_torch_still_gives_the_golden_losses(rule: str) -> None:
    assert by_autograd(rule) == pytest.approx(GOLDEN[rule], rel=1e-9)


@pytest.mark.parametrize(
    ("network", "rule", "dtype"),
    [("noise2noise", "SGD", torch.float32), ("unet", "Adam", torch.float32), ("concatenating", "Adam", torch.bfloat16)],
)
def test_the_same_seed_gives_the_same_bits_twice(network: str, rule: str, dtype: torch.dtype, threads: int) -> None:
    def run() -> list[Tensor]:
        g = torch.Generator().manual_seed(3)
        net, optimiser = NETWORKS[network](g), RULES[rule]()
        seen = []
        for N in (3, 3, 2):
            x, target = pair(g, N, 32, 24, dtype=dtype)
            seen.append(step(net, L1(), optimiser, x, target))
        for _, value, derivative in net.param():
            assert derivative is not None
            seen += [value, derivative]
        return seen

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@every_network
def test_another_seed_gives_other_weights_and_the_global_generator_is_left_alone(network: str) -> None:
    before = torch.random.get_rng_state()
    one, other = (NETWORKS[network](torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.equal(one.param()[0].value, other.param()[0].value)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_network
def test_training_resumed_from_weights_and_moments_goes_on_bit_for_bit(network: str, generator: torch.Generator) -> None:
    pictures = [pair(generator, N, dtype=torch.float32) for N in (3, 2, 3, 2)]
    whole, adam = NETWORKS[network](generator), Adam(0.01)
    for x, target in pictures[:2]:
        step(whole, MSE(), adam, x, target)
    resumed, again = NETWORKS[network](torch.Generator().manual_seed(99)), Adam(0.01)
    resumed.load({name: value for name, value, _ in whole.param()})
    again.resume(adam.state(), adam.step)
    for x, target in pictures[2:]:
        assert torch.equal(step(whole, MSE(), adam, x, target), step(resumed, MSE(), again, x, target))
    for (_, a, _), (_, b, _) in zip(whole.param(), resumed.param(), strict=True):
        assert torch.equal(a, b)
