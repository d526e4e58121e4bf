"""The matrix products: every device and dtype, borders that add and crop, and strips that change nothing."""

import pytest
import torch

from core.nn import Conv2d, Upsampling, products
from tests.core.nn.nets import LAYERS, NETWORKS, layers, pair
from tests.core.nn.oracles import by_engine

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

KINKED = ("Sequential", "Residual", "Concat", *NETWORKS)
"""Here a rounded number may fall on the other side of a ReLU's kink. About one in 1/eps does, and takes its whole term along in the
derivatives, whose sums are therefore right to about sqrt(eps)."""


def bound(name: str, kind: str, dtype: torch.dtype) -> float:
    """The error allowed, relative in the mean square."""
    eps = torch.finfo(dtype).eps
    chained = 2 if name == "gated block" else 1  # four layers round, each by itself
    return 2 * eps**0.5 if name in KINKED and kind != "y" else 2 * chained * eps


@every_dtype
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("master", [None, torch.float32], ids=["weights alike", "weights in float32"])
def test_a_layer_computes_in_its_inputs_dtype_on_its_inputs_device(
    name: str, dtype: torch.dtype, master: torch.dtype | None, device: torch.device, generator: torch.Generator
) -> None:
    module, shape = layers(generator)[name]
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    dy = torch.randn(module(x.float()).shape, generator=generator, dtype=torch.float64)
    exact_y, exact = by_engine(module.to(dtype=torch.float64), x, dy)
    module.to(device, master or dtype)
    y, derivatives = by_engine(module, x.to(device, dtype), dy.to(device, dtype))
    assert (y.dtype, derivatives["x"].dtype) == (dtype, dtype)
    for kind, found in {"y": y, **derivatives}.items():
        expected = exact_y if kind == "y" else exact[kind]
        assert found.device.type == device.type
        assert kind in "yx" or found.dtype == torch.promote_types(dtype, torch.float32), "derivatives of weights are float32 or better"
        error = float((found.cpu().double() - expected).norm() / expected.norm())
        assert error < bound(name, kind, torch.float32 if master and dtype == torch.float64 else dtype), f"`{kind}` is {error:.3g} off"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_bfloat16_is_near_the_one_in_float32(name: str, device: torch.device, generator: torch.Generator) -> None:
    network, (x, target) = NETWORKS[name](generator).to(device), (t.to(device) for t in pair(generator, 2, 32, 24, dtype=torch.float32))
    fine, rough = (by_engine(network, x.to(dtype), (target - 0.5).to(dtype)) for dtype in (torch.float32, torch.bfloat16))
    for kind, expected in {"y": fine[0], **fine[1]}.items():
        found = {"y": rough[0], **rough[1]}[kind].float()
        error = float((found - expected).norm() / expected.norm())
        assert error < bound(name, kind, torch.bfloat16), f"`{kind}` is {error:.3g} off"


@every_dtype
@pytest.mark.parametrize("strip", [1, 600])
@pytest.mark.parametrize("layer", [Conv2d(3, 4, 3, 2, 1), Conv2d(3, 4, (5, 4), 1, 2), Conv2d(3, 4, 1), Upsampling(3, 4, 5, 2, 2)])
def test_strips_of_any_size_give_the_same(
    layer: Conv2d, strip: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer.to(device, dtype)
    x = torch.randn(3, 13, 9, 3, generator=generator, dtype=torch.float64).to(device, dtype)
    dy = torch.randn(layer(x).shape, generator=generator, dtype=torch.float64).to(device, dtype)
    whole = by_engine(layer, x, dy)
    cut, strips = 0, products._strips

    def counted(windows: torch.Tensor) -> list[tuple[slice, slice]]:
        nonlocal cut
        cut += len(list(strips(windows)))
        return list(strips(windows))

    monkeypatch.setattr(products, "STRIP_BYTES", dict.fromkeys(products.STRIP_BYTES, strip))
    monkeypatch.setattr(products, "STRIP_BYTES_ELSEWHERE", strip)
    monkeypatch.setattr(products, "_strips", counted)
    found = by_engine(layer, x, dy)
    assert cut > 3
    tolerance = 4 * torch.finfo(dtype).eps
    for kind, expected in {"y": whole[0], **whole[1]}.items():
        given = {"y": found[0], **found[1]}[kind]
        assert float((given - expected).norm()) <= tolerance * float(expected.norm()), f"`{kind}`"


@pytest.mark.parametrize("strip", [1, 100, 250, 999, 1000, 5000, 10**9])
def test_strips_cover_every_row_once_within_their_size(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "STRIP_BYTES", {"cpu": strip})
    windows = torch.zeros(4, 7, 5, 1, 6, dtype=torch.uint8)  # 30 bytes a row, 210 a picture
    for n, h in products._strips(windows):
        windows[n, h] += 1
        assert windows[n, h].numel() <= max(strip, 30)
    assert bool((windows == 1).all())


@pytest.mark.parametrize("border", [(0, 0, 0, 0), (1, 2, 3, 0), (-1, 0, 0, -2), (2, -1, -1, 4)])
def test_a_border_adds_zeros_or_crops(border: products.Border, generator: torch.Generator) -> None:
    x = torch.randn(2, 5, 6, 3, generator=generator)
    top, bottom, left, right = border
    y = products.pad(x, border)
    assert y.is_contiguous()
    assert torch.equal(y, torch.nn.functional.pad(x, (0, 0, left, right, top, bottom)))


def test_a_strip_takes_a_window_of_every_pixel_without_a_copy() -> None:
    x = torch.arange(2 * 4 * 5 * 3.0).view(2, 4, 5, 3)
    windows = products._windows(x, (2, 3), (1, 2))
    assert windows.data_ptr() == x.data_ptr()
    assert torch.equal(windows.reshape(2, 3, 2, 2, 3, 3)[1, 2, 1], x[1, 2:4, 2:5])
