"""The architectures, counted by hand."""

from collections.abc import Callable

import pytest
import torch

from core import networks
from core.nn import Conv2d, DepthToSpace, DepthwiseGate, Module, Residual, Sequential, SpaceToDepth, Tape
from tests.core.made import photo


def block(channels: int) -> int:
    """Weights of two 3x3 convolutions without bias."""
    return 2 * 9 * channels * channels


def test_the_denoiser_has_the_weights_its_list_says() -> None:
    expected = (
        (9 * 16 * 64 + 64)  # into 64 channels at half resolution
        + 4 * block(64)
        + (4 * 64 * 128 + 128 * 256)  # down, and back up
        + 4 * block(128)
        + (4 * 128 * 256 + 256 * 512)
        + 2 * block(256)
        + (9 * 64 * 12 + 12)
    )
    assert sum(p.value.numel() for p in networks.unet().param()) == expected == 4_177_740


def test_the_denoisers_work_is_as_counted_by_hand_and_within_its_budget() -> None:
    half = 9 * 16 * 64 + 4 * block(64) + 9 * 64 * 12  # each weight once a pixel of the half-resolution grid
    quarter = 4 * 64 * 128 + 4 * block(128) + 128 * 256
    eighth = 4 * 128 * 256 + 2 * block(256) + 256 * 512
    assert networks.multiply_adds(networks.unet()) == half / 4 + quarter / 16 + eighth / 64 <= 200_000


def gated_blocks(count: int, channels: int) -> tuple[int, int]:
    """Weights, and multiply-adds a pixel, of 1x1 convolutions into twice the channels and out again, before and behind either gate."""
    products, filters = 6 * channels**2, 9 * 2 * channels
    return count * (products + filters + 2 * 2 * channels), count * (products + filters)


@pytest.mark.parametrize(
    ("make", "times", "told", "most"),
    [(networks.gated, 1, (5_950_284, 194_936), 200_000), (networks.deep, 2, (11_556_684, 377_648), 400_000)],
)
def test_the_gated_denoisers_have_the_weights_and_the_work_their_lists_say(
    make: Callable[[], Module], times: int, told: tuple[int, int], most: int
) -> None:
    half, quarter, eighth = (gated_blocks(times * count, channels) for count, channels in ((8, 64), (10, 128), (11, 256)))
    down, up = (4 * 64 * 128, 4 * 128 * 256), (128 * 256, 256 * 512)
    ends = 9 * 16 * 64, 9 * 64 * 12
    network = make()
    weights = sum(ends) + 64 + 12 + half[0] + quarter[0] + eighth[0] + sum(down) + sum(up)
    work = (sum(ends) + half[1]) / 4 + (quarter[1] + down[0] + up[0]) / 16 + (eighth[1] + down[1] + up[1]) / 64
    assert (sum(p.value.numel() for p in network.param()), networks.multiply_adds(network)) == (weights, work) == told
    assert work <= most


def test_the_gated_denoisers_look_as_far_as_counted_by_hand() -> None:
    """A convolution's edge, a depthwise gate's in each block, and what lies beside a pixel in its block of 2x2, in steps of each grid."""
    down, up = 1 + 2 + 4, 1 + 2 + 4
    assert networks.gated().reach() == (down + up + 2 * (2 + 8) + 4 * 10 + 8 * 11, 1) == (162, 1)
    assert networks.deep().reach() == (down + up + 2 * (2 + 16) + 4 * 20 + 8 * 22, 1) == (306, 1)


def test_a_deepened_network_computes_the_same_and_can_learn_in_every_block() -> None:
    network, x = networks.gated(torch.Generator().manual_seed(0)), torch.rand(1, 16, 24, 4)
    deep = networks.deepened(network, torch.Generator().manual_seed(1))
    tape: Tape = []
    y = deep.forward(x, tape)
    assert torch.equal(y, network.forward(x, []))
    deep.backward(torch.ones_like(y), tape)
    idle = [p.name for p in deep.param() if not p.value.count_nonzero() and p.value.ndim > 1]
    assert len(idle) == 2 * (8 + 10 + 11)
    learning = [p.name for p in deep.param() if p.derivative is not None and p.derivative.count_nonzero()]
    assert set(idle) <= set(learning)


def test_what_is_no_number_spreads_as_far_as_the_gated_denoiser_looks_and_no_farther() -> None:
    network, x = networks.gated(torch.Generator().manual_seed(0)), torch.rand(1, 360, 8, 4, dtype=torch.float64)
    x[0, 180, 3, 1] = torch.nan
    rows = network.forward(x, []).isnan().any(3).any(2)[0].nonzero()
    assert 150 <= 180 - int(rows.min()) <= 162
    assert 150 <= int(rows.max()) - 180 <= 162


def test_multiply_adds_follow_the_grid_through_strides_and_skips() -> None:
    network = Sequential(
        Conv2d(3, 5, 3, padding=1),  # 9*3*5 at every pixel
        SpaceToDepth(2),
        Residual(Conv2d(20, 7, 2, stride=2), Conv2d(7, 80, 1), DepthToSpace(2)),  # 4*20*7 and 7*80 at every 16th
        DepthwiseGate(10),  # 9*20 at every 4th
        Conv2d(10, 2, 1),  # 10*2 at every 4th
    )
    assert networks.multiply_adds(network) == 135 + (560 + 560) / 16 + (180 + 20) / 4


def test_the_denoiser_looks_no_further_than_a_tile_can_afford() -> None:
    reach, step = networks.unet().reach()
    assert step == 1
    assert reach <= 104


@pytest.mark.parametrize("make", networks.ARCHITECTURES.values(), ids=networks.ARCHITECTURES)
def test_a_denoiser_starts_as_almost_nothing_but_not_as_nothing(make) -> None:  # type: ignore[no-untyped-def]
    noisy = photo(16, 24)[None]
    clean = networks.correct(make(torch.Generator().manual_seed(0)), noisy, 0.1)
    assert clean.shape == noisy.shape
    assert 0.001 < (clean - noisy).abs().mean() < 0.1


@pytest.mark.parametrize("make", [networks.unet, networks.gated, networks.noise2noise])
def test_the_same_generator_makes_the_same_weights(make) -> None:  # type: ignore[no-untyped-def]
    one, same, other = (make(torch.Generator().manual_seed(seed)).param() for seed in (1, 1, 2))
    assert all(torch.equal(a.value, b.value) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0].value, other[0].value)


def test_the_experiments_network_is_the_reports() -> None:
    shapes = [tuple(p.value.shape) for p in networks.noise2noise().param()]
    assert shapes == [(3, 3, 3, 32), (32,), (5, 5, 32, 64), (64,), (5, 5, 64, 32), (32,), (3, 3, 32, 3), (3,)]
    clean = networks.noise2noise().forward(torch.rand(2, 32, 32, 3))
    assert clean.shape == (2, 32, 32, 3)
    assert 0 < clean.min() <= clean.max() < 1


def test_a_correction_is_added_to_the_picture_and_the_level_is_the_fourth_channel() -> None:
    class Seen(Sequential):
        def forward(self, x: torch.Tensor, tape: Tape | None = None) -> torch.Tensor:
            self.x = x
            return x[..., 3:].expand(-1, -1, -1, 3)

    network, noisy = Seen(), torch.stack((photo(8, 16), photo(8, 16, seed=1)))
    clean = networks.correct(network, noisy, torch.tensor([0.25, 0.5]).view(2, 1, 1, 1))
    assert network.x.dtype == torch.float32  # the picture itself is never rounded
    assert torch.equal(network.x[..., :3], noisy)
    assert torch.equal(network.x[..., 3], torch.tensor([0.25, 0.5]).view(2, 1, 1).expand(2, 8, 16))
    assert torch.equal(clean, noisy + torch.tensor([0.25, 0.5]).view(2, 1, 1, 1))
    assert torch.equal(networks.correct(network, noisy, 0.25), noisy + 0.25)
