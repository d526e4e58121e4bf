"""The one door to inference: a picture and its noise level in, the clean picture out. Knows nothing of files' formats, training or HTTP."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from core import hardware, kernels, noise, weights
from core.kernels import Ring
from core.networks import MULTIPLE, has_room
from core.nn import Module, Sequential, SpaceToDepth, products
from core.nn.stream import ALIGNED as ALIGNED_ROWS
from core.nn.stream import Stream
from core.weights import Card

ROWS = 256
"""Rows that are looked at together where no network is."""

BAND = 3072
"""Columns of a picture that pass through the network at once; wider pictures pass in bands that overlap by all it looks at."""

STRIP_PIXELS = 1 << 17
"""That enter the network at a time, for each of up to two threads: on a processor, so few that a layer finds in its last cache what the one
before wrote. `gaussian` is 3 to 5 % sooner with twice as many if two threads compute, and not if one does."""
STRIP_NUMBERS = 56 << 17
"""The same times a network's tensors of weights, at most: all layers together need little memory. `gaussian-fine`, of 1024x1024, takes
0.93 s and 254 MB beside the picture so, 0.97 s and 156 MB with half as many, 0.91 s and 445 MB with twice as many."""
STRIP_PIXELS_ELSEWHERE = 1 << 21
"""Enough to fill an accelerator."""

STREAMS = 8
"""Sizes of pictures whose way through the network is kept."""

STEPS = {torch.uint8: 255, torch.uint16: 65535}
"""The greatest value of each type of integers that a picture may have."""

LOOKED_AT = 32
"""Pieces of a large 8-bit picture that a blind network looks at first: where it finds next to no noise the picture comes back as it is."""
PIECE = 192
"""Side of such a piece in pixels."""
LARGE = 6 * LOOKED_AT * PIECE**2
"""Pixels from which that pays."""

ALIGNED = ALIGNED_ROWS * MULTIPLE
"""Bands and strips begin at multiples of this: the kernels' tiles then lie on one grid, and strips of any height give the same bits.

Bands agree to float32's rounding: a tile's inputs that cancel in exact arithmetic lie further off than the network looks.
"""


class Cancelled(Exception):
    """`keep_going` said no: the picture was given up between two strips."""


class Region(NamedTuple):
    """A rectangle of a picture, in pixels from its upper left corner."""

    x: int
    y: int
    width: int
    height: int

    @property
    def rows(self) -> slice:
        return slice(self.y, self.y + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.x, self.x + self.width)

    def check(self, H: int, W: int) -> None:
        """Raises ValueError if it is empty or the picture ends before it does."""
        x, y, width, height = self
        if min(width, height) < 1 or min(x, y) < 0 or x + width > W or y + height > H:
            told = f"{x},{y},{width},{height} (x,y,width,height)"
            raise ValueError(f"the region {told} must hold a pixel and lie within {W} x {H}: move it there")


class _Way(NamedTuple):
    """How a picture passes through the network: whether it is `grey`, until when, how many columns and rows of it at once, whether it is
    the `whole` picture or a region that is to be as there, and what waits for its rows.
    """

    grey: bool
    keep_going: Callable[[], bool]
    band: int = BAND
    strip: int | None = None
    whole: bool = True
    arrived: Callable[[int], object] = lambda rows: None


class Denoiser:
    """A network with its weights on a device, ready for pictures. It keeps nothing of them, so many threads may share one; weights that are
    changed later are not seen.

    A `blind` one, by its card, has learned to find the noise level by itself, and is better off without an estimate. A grey
    picture's level is told times the card's `grey_level`, as in training (see `core.noise.GREY_LEVEL`), to a network of its own if there
    is one for `grey`.
    """

    def __init__(
        self, network: Module, card: Card, name: str, device: torch.device, dtype: torch.dtype, grey: Module | None = None
    ) -> None:
        def ready(network: Module) -> Module:
            return network.lean().to(device, torch.float32).multiply_in(dtype, hardware.activations(dtype, device))

        self.network = ready(network)
        self._for_grey = self.network if grey is None else ready(grey)
        self.card, self.name, self.device, self.dtype = card, name, device, dtype
        self._untold = weights.untold(card)
        self.blind = self._untold is not None
        self._grey_level = float(card.get("grey_level", 1.0))
        reach, _ = network.reach()
        self._halo = -(-reach // ALIGNED) * ALIGNED
        self._strip_pixels = min(STRIP_PIXELS, STRIP_NUMBERS // len(network.param()))
        self._own = kernels.take(dtype, device)
        self._stream = functools.lru_cache(STREAMS)(_stream)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", dtype: str = "auto") -> Denoiser:
        """Reads a weights file. `auto` takes a GPU if there is one, and what it multiplies fastest; `.device` and `.dtype` tell.

        (But not float16, whose numbers end at 65504, for a network that comes near them.)

        Raises WeightsError for a file that can't be used and DeviceError for a device that isn't there.
        """
        taken = hardware.take(device)
        network, grey, card = weights.load_both(Path(path))
        first = hardware.take_dtype(dtype, taken)
        made = cls(network, card, Path(path).stem, taken, first, grey)
        if dtype == "auto" and first == torch.float16 and not made.has_room():
            return cls(network, card, Path(path).stem, taken, hardware.fast_dtype(taken, float16=False), grey)
        return made

    def has_room(self) -> bool:
        """`networks.has_room` of both networks."""
        return all(has_room(network) for network in dict.fromkeys((self.network, self._for_grey)))

    def __call__(
        self,
        pixels: Tensor,
        sigma: float | None = None,
        strength: float = 1.0,
        keep_going: Callable[[], bool] = lambda: True,
        band: int = BAND,
        strip: int | None = None,
    ) -> Tensor:
        """(H, W, 1 or 3) floats in [0, 1], uint8 or uint16 -> the same on the CPU, floats in float32, of any size from 1x1 up.

        Integers are rounded once, at the end, and no float copy of the whole picture is ever made.

        sigma: the noise's standard deviation in [0, 1] image units, or None to take `estimate`'s, or let a blind network find it. strength:
        multiplies it, and of what a blind network finds, the share that is taken away, above 1 in a second pass; 0 gives the input back bit
        for bit. A large 8-bit picture in which a blind network finds less noise than a step comes back so too, see `is_clean`. keep_going:
        asked before each strip; Cancelled is raised when it says no. band, strip: how many columns, and rows, pass through the network at
        once; the result is the same whatever they are.
        """
        _check(pixels)
        return self._denoise(pixels, sigma, strength, _empty(pixels), _Way(noise.is_grey(pixels), keep_going, band, strip))[0]

    def over(
        self,
        pixels: Tensor,
        sigma: float | None = None,
        strength: float = 1.0,
        keep_going: Callable[[], bool] = lambda: True,
        band: int = BAND,
        strip: int | None = None,
        arrived: Callable[[int], object] = lambda rows: None,
    ) -> float:
        """Puts the same answer, bit for bit, into the place of `pixels`, float32 or integers on the CPU: a large picture is there once.

        Returns the noise level in [0, 1] image units: the one told, `estimate`'s or, of a blind network, `found`'s. Whatever is raised on
        the way, even Cancelled, may leave a part of the picture clean and the rest as it was.

        arrived: returns once that many rows, from the top, are there, for integers that are still being decoded; asked before each strip.
        """
        _check(pixels)
        if pixels.device.type != "cpu" or (pixels.is_floating_point() and pixels.dtype != torch.float32):
            raise ValueError(
                f"pixels are {pixels.dtype} on {pixels.device}: only float32 and integers on the cpu are written over: "
                "call the denoiser itself"
            )
        arrived(min(ROWS, len(pixels)))
        if grey := noise.is_grey(pixels[:ROWS]):
            arrived(len(pixels))
            grey = noise.is_grey(pixels)
        way = _Way(grey, keep_going, band, strip, arrived=arrived)
        return self._denoise(pixels, sigma, strength, pixels, way)[1]

    def _denoise(self, pixels: Tensor, sigma: float | None, strength: float, out: Tensor, way: _Way) -> tuple[Tensor, float]:
        """`out`, which may be `pixels`, with the answer in it, and the noise level that it was for, or that was found."""
        blind = self.blind and sigma is None
        if sigma is None and not blind and strength:
            way.arrived(len(pixels))
            sigma = self.estimate(pixels)
        level = strength * (1.0 if blind else sigma or 0.0)
        if not 0 <= level < math.inf:
            raise ValueError(f"sigma (={sigma}) times strength (={strength}) must be finite and not below 0")
        if level == 0:
            return (out if out is pixels else out.copy_(pixels)), sigma or 0.0
        with torch.no_grad():  # not inference_mode, whose tensors a caller could not change in place
            if not blind:
                self._by_strips(pixels, level, out, way)
                return out, sigma or 0.0
            if strength > 1 or len(pixels) * pixels.shape[1] >= LARGE:
                way.arrived(len(pixels))
            if way.whole and strength <= 1 and self.is_clean(pixels, way.keep_going):
                return (out if out is pixels else out.copy_(pixels)), 0.0
            if strength <= 1:
                return out, self._by_strips(pixels, None, out, way, share=strength)
            once = _empty(pixels)
            self._by_strips(pixels, None, once, way)
            self._by_strips(once, None, once, way, share=strength - 1)
            found = self.found(pixels, once)
            return (out.copy_(once) if out is pixels else once), found

    def found(self, pixels: Tensor, clean: Tensor) -> float:
        """The noise level that a blind network found in `pixels`, by the `clean` ones that it made of them; as `estimate`."""
        squares = 0.0
        for noisy, cleaned in zip(torch.split(pixels, ROWS), torch.split(clean, ROWS), strict=True):
            squares += (_unit(cleaned) - _unit(noisy)).square().double().sum().item()
        return math.sqrt(squares / pixels.numel())

    def is_clean(self, pixels: Tensor, keep_going: Callable[[], bool] = lambda: True) -> bool:
        """Whether a blind network finds less noise than a step in LOOKED_AT pieces of a large 8-bit picture, and nowhere two steps.

        (In clean pictures that are full of texture it takes up to two away.) The first pieces tell a noisy picture, a clean one is spared
        most of the work. False for any other: in a small one that would spare nothing, and of finer steps less than one of 8 bits is worth
        taking away.
        """
        H, W, _ = pixels.shape
        if not self.blind or pixels.dtype != torch.uint8 or H * W < LARGE:
            return False
        down = max(1, min(LOOKED_AT, round(math.sqrt(LOOKED_AT * H / W))))
        across = LOOKED_AT // down
        squares = 0.0
        for i in range(down * across):
            piece = pixels[_middle(i // across, down, H), _middle(i % across, across, W)]
            with torch.no_grad():
                found = self._by_strips(piece, None, _empty(piece), _Way(noise.is_grey(piece), keep_going))
            found *= STEPS[pixels.dtype]
            squares += found**2
            if found >= 2 or squares >= down * across:
                return False
        return True

    def region(
        self,
        pixels: Tensor,
        region: Region,
        sigma: float | None = None,
        strength: float = 1.0,
        keep_going: Callable[[], bool] = lambda: True,
    ) -> Tensor:
        """That region of the whole picture's answer, (height, width, 3), at the cost of the region and all that it hangs on around it.

        Equal to it to float32's rounding: what is cut out begins where the whole picture's tiles do. sigma None: the whole picture's.
        At a strength above 1 a blind network passes twice, and looks twice as far.
        """
        _check(pixels)
        region.check(*pixels.shape[:2])
        if not self.blind and sigma is None and strength:
            sigma = self.estimate(pixels)
        if self.blind and sigma is None and 0 < strength <= 1 and self.is_clean(pixels, keep_going):
            return pixels[region.rows, region.columns].clone()
        return self._part(pixels, region, sigma, strength, _Way(noise.is_grey(pixels), keep_going, whole=False))

    def _part(self, pixels: Tensor, region: Region, sigma: float | None, strength: float, way: _Way) -> Tensor:
        down, rows = self._around(region.rows, pixels.shape[0])
        across, columns = self._around(region.columns, pixels.shape[1])
        if self.blind and sigma is None and strength > 1:  # what the second pass looks at is a region of the first one's answer
            seen = Region(across.start, down.start, across.stop - across.start, down.stop - down.start)
            once = self._part(pixels, seen, None, 1.0, way)
            with torch.no_grad():
                self._by_strips(once, None, once, way, share=strength - 1)
            return once[rows, columns]
        around = pixels[down, across]
        return self._denoise(around, sigma, strength, _empty(around), way)[0][rows, columns]

    def _around(self, part: slice, size: int) -> tuple[slice, slice]:
        """What of 0..size `part` hangs on, and where it lies in that."""
        first = max(0, part.start // ALIGNED * ALIGNED - self._halo)
        return slice(first, min(size, part.stop + self._halo)), slice(part.start - first, part.stop - first)

    def estimate(self, pixels: Tensor) -> float:
        """The noise level of a picture (H, W, 1 or 3), a standard deviation in [0, 1] image units (see `core.noise.estimate_gaussian`)."""
        _check(pixels)
        return noise.estimate_gaussian(pixels)

    def _by_strips(self, pixels: Tensor, told: float | None, out: Tensor, way: _Way, share: float = 1.0) -> float:
        """Puts into `out`, which may be `pixels`, these with that `share` of the correction that the network makes when it is `told` that
        level, or, a blind one, none.

        Returns the deviation of what was taken away, if none was told.
        """
        H, W, _ = pixels.shape
        rows, columns = _mirror(H), _mirror(W)
        squares = 0.0
        if told is None:
            assert self._untold is not None
            level = self._untold
        else:
            level = told * self._grey_level if way.grey else told
        before: Tensor | None = None  # columns as they were, in front of a band
        if len(rows) > H or len(columns) > way.band:
            way.arrived(H)  # the last strip goes back over rows, or there are several bands
        for x in _spans(len(columns), max(ALIGNED, way.band // ALIGNED * ALIGNED), self._halo):
            across, kept = columns[x.seen], slice(x.kept.start - x.seen.start, min(W, x.kept.stop) - x.seen.start)
            most = self._strip_pixels * min(2, hardware.threads()) if self.device.type == "cpu" else STRIP_PIXELS_ELSEWHERE
            fits = most // len(across)
            height = max(ALIGNED, (way.strip or fits) // ALIGNED * ALIGNED)
            strips = torch.split(rows, height)
            network = self._for_grey if way.grey else self.network
            stream, scale = self._stream(network, tuple(map(len, strips)), len(across), self.device)
            passage = stream.begin()
            # the last one goes back over rows that may be written by then
            last = _cut(pixels, strips[-1], across).clone() if out is pixels and len(rows) > H else None
            after = self._in_front(pixels, x.kept, before) if out is pixels else None
            done = 0
            for down in strips:
                if not way.keep_going():
                    raise Cancelled("the picture was given up between two strips")
                way.arrived(min(H, int(down[-1]) + 1))
                here = last if last is not None and down is strips[-1] else _cut(pixels, down, across)
                if before is not None:
                    here = torch.cat((before[down], here[:, before.shape[1] :]), 1)
                ready = passage.push(functools.partial(self._lay, here, level, scale))
                ready = ready.cut(0, min(ready.height, H - done))
                place = slice(done, done + ready.height), x.kept
                squares += self._correct(pixels[place], share, ready, kept, way.grey, out[place], told is None)
                done += ready.height
            before = after
            del passage, ready  # their memory is the next band's
        return math.sqrt(squares / pixels.numel())

    def _lay(self, samples: Tensor, level: float, scale: int, to: Ring) -> None:
        """(H, W, 1 or 3) and their level as the network takes them behind a space-to-depth by `scale`, into `to`."""
        if self._own is not None and scale == 2 and kernels.samples_fit(samples):
            self._own.lay(samples, level, to)
            return
        laid = torch.full((1, *samples.shape[:2], 4), level, device=self.device)
        laid[0, ..., :3] = samples.to(self.device)
        if steps := STEPS.get(samples.dtype):
            laid[0, ..., :3] /= steps
        to.put(products.space_to_depth(laid, (scale, scale)))

    def _correct(self, noisy: Tensor, share: float, ready: Ring, kept: slice, grey: bool, out: Tensor, measured: bool) -> float:
        """Puts into `out`, which may be `noisy`, (H, W, 1 or 3), these with a share of the correction, `ready` in the columns `kept`.

        Gives the sum of the squares of what was taken away, if that is to be measured.
        """
        if self._own is not None and kernels.samples_fit(noisy) and kernels.samples_fit(out):
            return self._own.correct(noisy, share, ready, kept.start, grey, out, measured)
        correction = ready.rows()[0, :, kept]
        correction = (correction.mean(2, keepdim=True) if grey else correction).to("cpu", torch.float32)
        steps, noisy = STEPS.get(noisy.dtype), _unit(noisy)
        clean = noisy.add(correction, alpha=share).clamp_(0, 1)
        clean = clean.mul_(steps).round_() if steps else clean
        taken = noisy.sub(clean, alpha=1 / steps if steps else 1).square_().sum(dtype=torch.float64).item() if measured else 0.0
        out.copy_(clean)
        return taken

    def _in_front(self, pixels: Tensor, band: slice, before: Tensor | None) -> Tensor:
        """What the band behind this one sees of `pixels` that this one writes over, and, if that is narrow, of what was `before` it."""
        own = pixels[:, max(band.start, band.stop - self._halo) : band.stop].clone()
        return own if before is None else torch.cat((before, own), 1)[:, -self._halo :]


def _empty(pixels: Tensor) -> Tensor:
    """Where the answer goes that is no picture's place."""
    return torch.empty(pixels.shape, dtype=pixels.dtype if pixels.dtype in STEPS else torch.float32)


def _stream(network: Module, heights: tuple[int, ...], width: int, device: torch.device) -> tuple[Stream, int]:
    """For pictures that were laid behind a space-to-depth, of the scale beside it, that the network begins with."""
    like = torch.empty(0, device=device)
    if isinstance(network, Sequential) and network.layers and isinstance(first := network.layers[0], SpaceToDepth):
        S = first.scale
        return Stream(Sequential(*network.layers[1:]), [height // S for height in heights], width // S, 4 * S**2, like), S
    return Stream(network, heights, width, 4, like), 1


def _middle(index: int, count: int, size: int) -> slice:
    """A piece in the middle of that one of `count` equal parts of 0..size."""
    side = min(PIECE, size)
    start = max(0, min(size - side, (2 * index + 1) * size // (2 * count) - side // 2))
    return slice(start, start + side)


def _unit(samples: Tensor) -> Tensor:
    """Floats in [0, 1]."""
    steps = STEPS.get(samples.dtype)
    return samples.float().div_(steps) if steps else samples.float()


def _cut(pixels: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Rows `down` and columns `across`; a view, where neither goes back and forth."""
    rows, columns = (slice(int(i[0]), int(i[0]) + len(i)) for i in (down, across))
    if int(down[-1]) == rows.stop - 1 and int(across[-1]) == columns.stop - 1:
        return pixels[rows, columns]
    return pixels[down][:, across]


class _Span(NamedTuple):
    """The columns of a band: what the network sees, and the part of it that is kept."""

    seen: slice
    kept: slice


def _spans(size: int, band: int, halo: int) -> Iterator[_Span]:
    """Cuts 0..size into bands that see `halo` more on both sides; what fits into one is not cut."""
    if size <= band + 2 * halo:
        band = size
    for start in range(0, size, band):
        stop = min(start + band, size)
        yield _Span(slice(max(0, start - halo), min(size, stop + halo)), slice(start, stop))


def _mirror(size: int) -> Tensor:
    """Indices of 0..size, then back from the edge as far as the next multiple the network needs."""
    index = torch.arange(-(-size // MULTIPLE) * MULTIPLE) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def _check(pixels: Tensor) -> None:
    numbers = pixels.is_floating_point() or pixels.dtype in STEPS
    if pixels.dim() != 3 or pixels.shape[2] not in (1, 3) or not numbers or 0 in pixels.shape:
        raise ValueError(
            f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}: a picture is floats in [0, 1], uint8 or uint16, "
            "of shape (H, W, 3) or, in grey, (H, W, 1)"
        )
    if pixels.is_floating_point() and not torch.stack(pixels.aminmax()).float().isfinite().all():  # NaN passes through both
        raise ValueError("pixels hold NaN or infinity: a picture is floats in [0, 1]")
