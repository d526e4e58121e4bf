"""A batch's sums come out the same to the bit, whoever computes which part of it."""

import pytest
import torch

from core.nn import convolution
from core.nn.sums import LEAF, by_halves, leaf


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


@pytest.mark.parametrize("count", [1, 3, 6, 7, 12, 16])
def test_all_parts_are_summed_once(count: int) -> None:
    seen: list[slice] = []

    def part(n: slice) -> torch.Tensor:
        seen.append(n)
        return torch.tensor(float(sum(range(n.start, n.stop))))

    assert by_halves(part, 0, count, LEAF) == sum(range(count))
    assert [n.start for n in seen] == [0, *(n.stop for n in seen[:-1])]
    assert all(n.stop - n.start <= LEAF or (n.stop - n.start) % 2 for n in seen)
