"""A batch's sums come out the same to the bit, whoever computes which part of it."""

import pytest
import torch

from core import kernels
from core.nn import DepthwiseGate, Gate, convolution
from core.nn.sums import LEAF, by_halves, leaf
from tests.core.nn.oracles import by_engine


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("processes", [2, 4])
def test_a_batchs_derivatives_are_the_sums_of_its_shares(kernel: int, processes: int, generator: torch.Generator) -> None:
    batch, stride = processes * leaf(), 2 if kernel == 2 else 1
    x = torch.randn(batch, 8, 12, 16, generator=generator)
    dy = torch.randn(batch, 8 // stride, 12 // stride, 20, generator=generator)
    border = (kernel // 2,) * 4 if kernel == 3 else (0,) * 4

    def of(n: slice) -> list[torch.Tensor]:
        weight = convolution.weight_gradient(x[n].clone(), dy[n].clone(), (kernel, kernel), (stride, stride), border)
        return [weight, convolution.bias_gradient(dy[n].clone(), torch.float32)]

    shares = [of(slice(i, i + leaf())) for i in range(0, batch, leaf())]
    for whole, *parts in zip(of(slice(0, batch)), *shares, strict=True):
        assert torch.equal(whole, by_halves(lambda i: parts[i.start].clone(), 0, processes, 1))  # noqa: B023


@pytest.mark.parametrize("way", ["the fastest", "plain"])
@pytest.mark.parametrize("gate", [Gate(20), DepthwiseGate(20, torch.Generator().manual_seed(1))], ids=lambda gate: type(gate).__name__)
@pytest.mark.parametrize("processes", [2, 4])
def test_a_batchs_derivatives_by_a_gates_weights_are_the_sums_of_its_shares(
    processes: int, gate: Gate | DepthwiseGate, way: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "plain":
        monkeypatch.setattr(kernels, "take", lambda factors, device: None)
    batch = processes * leaf()
    x, dy = torch.randn(batch, 8, 12, 40, generator=generator), torch.randn(batch, 8, 12, 20, generator=generator)

    def of(n: slice) -> dict[str, torch.Tensor]:
        return {name: derivative.clone() for name, derivative in by_engine(gate, x[n], dy[n])[1].items() if name != "x"}

    shares = [of(slice(i, i + leaf())) for i in range(0, batch, leaf())]
    for name, whole in of(slice(0, batch)).items():
        assert torch.equal(whole, by_halves(lambda i: shares[i.start][name].clone(), 0, processes, 1)), name  # noqa: B023


@pytest.mark.parametrize("count", [1, 3, 6, 7, 12, 16])
def test_all_parts_are_summed_once(count: int) -> None:
    seen: list[slice] = []

    def part(n: slice) -> torch.Tensor:
        seen.append(n)
        return torch.tensor(float(sum(range(n.start, n.stop))))

    assert by_halves(part, 0, count, LEAF) == sum(range(count))
    assert [n.start for n in seen] == [0, *(n.stop for n in seen[:-1])]
    assert all(n.stop - n.start <= LEAF or (n.stop - n.start) % 2 for n in seen)
