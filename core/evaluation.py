"""A denoiser's figures on a folder of pictures, under the protocol of the published tables. Trains and prints nothing.

Of a folder of clean pictures, the noise is white, Gaussian and unclipped, added to the 8-bit picture in float, every picture's with its
own fixed seed, and on a grey picture the same in all channels. Of a folder of pairs, it is the noise of the noisy ones. The result is
rounded to 8 bits; PSNR is over the whole picture and all channels; a figure is the mean over pictures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from core import data, metrics, noise
from core.ensemble import Ensemble
from core.sheet import sheet

SIGMAS = (15.0, 25.0, 50.0)
PAIRED = (("_real", "_mean"), ("_noisy", "_clean"), ("_noisy", "_gt"))
"""How the names of a noisy picture and of its clean one end. PolyU's do in the first way."""


class Denoises(Protocol):
    """A `Denoiser`, or whatever does as one."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __call__(self, pixels: Tensor, sigma: float | None = None, /) -> Tensor: ...


@dataclass(frozen=True)
class Row:
    """The figures at one noise level, PSNR in dB, the mean over `pictures`.

    `sigma` is what was put on, or what the denoiser is told of real noise, in 8-bit steps; None: real noise and not told. `left` is the
    share of the noise that is still in the result, 1 in the noisy picture itself: their least-squares factor. `shift` is how far the mean
    of a channel is, in 8-bit steps, from that of the clean picture, or, of real noise, of the noisy one; of each picture the channel that
    is furthest. `worst_shift` is that of the worst picture. `each` has the PSNR of every picture.
    """

    sigma: float | None
    pictures: int
    noisy_psnr: float
    psnr: float
    ssim: float
    left: float
    shift: float
    worst_shift: float
    each: dict[str, float]


class Pair(NamedTuple):
    """Two pictures (H, W, 3) of one scene."""

    noisy: Tensor
    clean: Tensor


class Pictures:
    """A folder to measure on: pairs, if half of its pictures are named as the clean ones of the others, or else clean pictures alone."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError."""
        self.folder = folder
        paths = data.find([folder])
        if not paths:
            raise data.DataError(f"{folder} holds no picture: name a folder of clean pictures, or of pairs as x_noisy.png with x_clean.png")
        self._noisy, self._clean = _pairs(paths) or ([], paths)
        self.real = bool(self._noisy)
        self.names = [path.name for path in self._noisy or self._clean]

    def __len__(self) -> int:
        return len(self._clean)

    def every(self, nth: int) -> Pictures:
        """The first of each `nth`, for a quick look."""
        fewer = copy.copy(self)
        fewer._noisy, fewer._clean, fewer.names = self._noisy[::nth], self._clean[::nth], self.names[::nth]
        return fewer

    def pair(self, i: int, sigma: float) -> Pair:
        """The pair number i; if the noise is put on, it has the level `sigma` in 8-bit steps. Raises DataError."""
        path = self._clean[i]
        clean = data.pixels(path)
        if min(clean.shape[:2]) < metrics.WINDOW:
            raise data.DataError(f"{path} is {clean.shape[1]}x{clean.shape[0]}: measure on pictures of 11x11 pixels and more")
        if self.real:
            noisy = data.pixels(self._noisy[i])
            if noisy.shape != clean.shape:
                one, other = (f"{picture.shape[1]}x{picture.shape[0]}" for picture in (noisy, clean))
                raise data.DataError(f"{self._noisy[i]} is {one} and {path.name} is {other}: a pair has one size")
            return Pair(noisy, clean)
        grey = clean[..., :1] if noise.is_grey(clean) else clean
        return Pair(noise.add_gaussian(grey, sigma / 255, data.generator_of(0, i)).expand_as(clean), clean)


def evaluate(
    denoiser: Denoises,
    pictures: Pictures,
    sigmas: Sequence[float] | None = None,
    blind: bool = False,
    after_picture: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """A row for each sigma, in 8-bit steps. `blind` lets the denoiser find the level, as it does with real noise, if no sigma is given."""
    levels = tuple(sigmas) if sigmas else (None,) if pictures.real else SIGMAS
    rows = []
    for n, sigma in enumerate(levels):
        scores = []
        for i in range(len(pictures)):
            pair = pictures.pair(i, sigma or 0)
            scores.append(_scores(pair, denoiser(pair.noisy, _told(sigma, blind)), pictures.real))
            after_picture(n * len(pictures) + i + 1, len(levels) * len(pictures))
        columns = list(zip(*scores, strict=True))
        noisy_psnr, psnr, ssim, left, shift = (round(sum(column) / len(column), 4) for column in columns)
        each = {name: round(value, 4) for name, value in zip(pictures.names, columns[1], strict=True)}
        level, worst_shift = None if sigma is None else float(sigma), round(max(columns[4]), 4)
        rows.append(Row(level, len(pictures), noisy_psnr, psnr, ssim, left, shift, worst_shift, each))
    return rows


def extremes(row: Row) -> dict[str, int]:
    """The numbers of a row's worst, median and best picture, by PSNR; of fewer than three pictures, of what there is."""
    order = sorted(range(row.pictures), key=list(row.each.values()).__getitem__)
    return {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}


def shown(denoiser: Denoises, pictures: Pictures, rows: Sequence[Row], blind: bool) -> list[list[tuple[str, Tensor]]]:
    """Noisy, denoised and clean side by side with their PSNR, of each row's worst, median and best picture: what `core.sheet` takes."""
    cells = []
    for row in rows:
        for which, i in extremes(row).items():
            noisy, clean = pictures.pair(i, row.sigma or 0)
            denoised = denoiser(noisy, _told(row.sigma, blind))
            before, after = metrics.psnr(noisy, clean), metrics.psnr(metrics.to_8bit(denoised), clean)
            level = "" if row.sigma is None else f" sigma {row.sigma:g}"
            cells.append(
                [
                    (f"{which}{level} {before:.2f} dB: {pictures.names[i]}", noisy),
                    (f"{denoiser.name} {after:.2f} dB", denoised),
                    ("clean", clean),
                ]
            )
    return cells


def contact_sheet(denoiser: Denoises, pictures: Pictures, rows: Sequence[Row], blind: bool) -> Tensor:
    """One picture (H, W, 3) of all that is `shown`."""
    return sheet(shown(denoiser, pictures, rows, blind))


def as_json(denoiser: Denoises, pictures: Pictures, rows: Sequence[Row], blind: bool) -> dict[str, Any]:
    """What was measured and with what, in plain values; JSON knows no infinity, so the PSNR of equal pictures is None."""
    return {
        "model": denoiser.name,
        "device": str(denoiser.device),
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "set": pictures.folder.resolve().name,
        "real": pictures.real,
        "sigma_known": not blind and all(row.sigma is not None for row in rows),
        "ensemble": isinstance(denoiser, Ensemble),
        "rows": [_finite(asdict(row)) for row in rows],
    }


def recorded(pictures: Pictures, rows: Sequence[Row], blind: bool) -> tuple[str, dict[str, str]]:
    """The name and the figures under which a card keeps these rows."""
    kind = "real noise" if pictures.real else f"sigma {'estimated' if blind else 'known'}"
    figures = {}
    for row in rows:
        level = "not told" if row.sigma is None else f"told {row.sigma:g}" if pictures.real else f"{row.sigma:g}"
        figures[level] = f"{row.psnr:.2f} dB, SSIM {row.ssim:.4f}" + f" (before: {row.noisy_psnr:.2f} dB)" * pictures.real
    return f"{pictures.folder.resolve().name}, {kind}", figures


def _told(sigma: float | None, blind: bool) -> float | None:
    return None if blind or sigma is None else sigma / 255


def _pairs(paths: list[Path]) -> tuple[list[Path], list[Path]] | None:
    """The noisy pictures and, in the same order, their clean ones; None unless every picture has its other."""
    by_stem = {path.with_suffix(""): path for path in paths}
    for noisy_end, clean_end in PAIRED:
        noisy = [stem for stem in by_stem if stem.name.endswith(noisy_end)]
        clean = [stem.with_name(stem.name.removesuffix(noisy_end) + clean_end) for stem in noisy]
        if noisy and len(paths) == 2 * len(noisy) and all(stem in by_stem for stem in clean):
            return [by_stem[stem] for stem in noisy], [by_stem[stem] for stem in clean]
    return None


def _scores(pair: Pair, denoised: Tensor, real: bool) -> tuple[float, float, float, float, float]:
    """PSNR before, PSNR, SSIM, the share of the noise left, the largest move of a channel's mean.

    Noise that is put on moves means itself, by chance; real pairs are of two exposures.
    """
    noisy, clean = pair
    rounded = metrics.to_8bit(denoised)
    put_on = (noisy - clean).double()
    left = ((denoised - clean) * put_on).sum() / put_on.square().sum().clamp_min(1e-12)
    shift = (denoised.double() - (noisy if real else clean)).mean((0, 1)).abs().max() * 255
    return metrics.psnr(noisy, clean), metrics.psnr(rounded, clean), metrics.ssim(rounded, clean), left.item(), shift.item()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if value == math.inf else value
