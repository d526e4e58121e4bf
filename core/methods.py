"""What a training run learns from: clean pictures, pairs of shots, or noisy pictures alone. Knows nothing of optimisers or files' formats.

A source gives batches of (input, target, level) and measures a denoiser on what was held out. The network is told a level, so each method
says which: with `clean` it is the deviation of the noise that was put on; with `pairs` and `noisy`, where nobody knows it, it is what a
denoiser does that is given none: a blind one, whose parent was, is told nothing (`weights.untold`), any other what
`noise.estimate_gaussian` finds in the whole picture, so that the next picture of that camera is met with the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch
from torch import Tensor

from core import data, metrics, noise
from core.networks import MULTIPLE
from core.nn import MSE, Censored

METHODS = ("clean", "pairs", "noisy")
Denoise = Callable[[Tensor, Tensor | float], Tensor]
"""(N, H, W, 3) and its level, a number or (N, 1, 1, 1) -> (N, H, W, 3)."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Input and target (N, P, P, 3) and the input's level (N, 1, 1, 1), all in [0, 1] image units."""

HELD_OUT = 8
"""One picture in so many is held out to measure on, and at most so many."""
PIECE = 256
"""Side in pixels, at most, of the pieces that are measured on."""
MOST_PIXELS = 150_000_000
"""Of all pictures together, kept in memory as float16; of larger sets a part of every picture is kept."""
REGULAR = 2.0
"""Weight of Neighbor2Neighbor's regulariser, the paper's for pictures of cameras."""
CORRELATED = 0.1
"""Two pixels whose noise correlates more than this are not taken for independent."""
FARTHEST = 3
"""Pixels are taken apart by at most this when their neighbours' noise is correlated."""


class Loss(Protocol):
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor: ...

    def backward(self, prediction: Tensor, target: Tensor) -> Tensor: ...


class Source(Protocol):
    """What the trainer asks of a method."""

    loss: Loss
    what: str
    """What `measure` gives, in words."""
    summary: str
    """What the model is for, in words, for its card."""
    note: str
    """What the method assumes and whether it holds here, in words."""
    levels: str
    """How the level that the network is told comes about, in words."""
    untold: float | None
    """What a model that finds the level by itself has in its level map when it is given none; None for any other."""
    margin: float
    """By how many dB a figure must be above another to be called better."""
    grey: bool
    """Whether no picture has colours: of a parent with a network for such pictures, that one goes on learning."""

    def batches(self, first: int, denoise: Denoise, share: slice) -> Iterator[Batch]:
        """That share of those of step `first` and on, each told by its step alone. `denoise`: the network as it is by then."""
        ...

    def measure(self, denoise: Denoise) -> float:
        """dB on what was held out; larger is better."""
        ...

    def sample(self) -> tuple[Tensor, float]:
        """A piece (H, W, 3) of what was held out and its level, to look at."""
        ...


# Which picture goes with which.


@dataclass(frozen=True)
class Pairing:
    """Indices of the names that belong together, in order; `clean`: the second of each is a truth without noise."""

    pairs: list[tuple[int, int]]
    clean: bool


CLEAN_FOLDERS = {"clean", "gt", "groundtruth", "ground_truth", "truth", "target", "targets", "reference"}
_NUMBERED = re.compile(r"^(.*?)(?:[ _.-]|(?<=\D))([12])$")  # not 0001 and 0002, which count scenes
_WORDED = re.compile(r"^(.*?)[ _.-]?(noisy|clean)$")


def pair(names: Sequence[str]) -> Pairing:
    """Finds the pairs among paths of pictures, by one of three rules for all of them. Raises DataError, which names what is left over.

    `x_1.png` and `x_2.png` are two shots of one scene; `x_noisy.png` and `x_clean.png` a shot and its truth; else the pictures lie in two
    folders, and equal names in both belong together. A folder named `clean`, `gt`, `truth`, `target` or `reference` holds truths, so that
    beside it `x_1.png` has its own. Suffixes may differ; letters' case doesn't count.
    """
    paths = [PurePosixPath(name.replace("\\", "/").lower()) for name in names]
    folders = sorted({str(path.parent) for path in paths})
    truths = [PurePosixPath(folder).name in CLEAN_FOLDERS for folder in folders]
    for rule, clean in ((_NUMBERED, False), (_WORDED, True)):
        halves = [rule.match(path.stem) for path in paths]
        if halves and all(halves) and (clean or sorted(truths) != [False, True]):
            first, second = ("noisy", "clean") if clean else ("1", "2")
            keys = [(str(path.parent), half[1], half[2]) for path, half in zip(paths, halves, strict=True) if half]
            return Pairing(_matched(names, [key[:2] for key in keys], [key[2] for key in keys], (first, second)), clean)
    if len(folders) != 2:
        raise data.DataError(
            f"{len(names)} pictures lie in {len(folders)} folders: pairs are x_1.png and x_2.png, or x_noisy.png and x_clean.png, "
            "or equal names in two folders"
        )
    if truths == [True, False]:
        folders.reverse()
    parents = [str(path.parent) for path in paths]
    return Pairing(_matched(names, [path.stem for path in paths], parents, (folders[0], folders[1])), any(truths) and not all(truths))


def _too_small(patch: int) -> data.DataError:
    return data.DataError(f"no pair has {patch}x{patch} pixels: add larger pictures or lower patch (={patch})")


def _matched(names: Sequence[str], keys: Sequence[object], sides: Sequence[str], order: tuple[str, str]) -> list[tuple[int, int]]:
    found: dict[object, dict[str, int]] = {}
    for index, (key, side) in enumerate(zip(keys, sides, strict=True)):
        if side in found.setdefault(key, {}):
            raise data.DataError(f"{names[index]!r} and {names[found[key][side]]!r} are the same half of one pair: rename or leave out one")
        found[key][side] = index
    for halves in found.values():
        if len(halves) < 2:
            raise data.DataError(f"{names[next(iter(halves.values()))]!r} has no other half: add it, or leave this one out")
    return [(halves[order[0]], halves[order[1]]) for halves in found.values()]


# How the noise of neighbours hangs together.


def correlation(residuals: Tensor) -> Tensor:
    """Noise alone, (N, S, S, C) with S > 2 FARTHEST -> (FARTHEST + 1, FARTHEST + 1): how the values at (0, 0) and (v, u) correlate.

    The median over the N patches, so that a patch with a detail in it has one vote. Both diagonals count as one. Without a patch nothing
    is known, and everything counts as correlated.
    """
    if not len(residuals):
        return torch.ones(FARTHEST + 1, FARTHEST + 1)
    x = residuals.float() - residuals.float().mean((1, 2), keepdim=True)
    S = x.shape[1]
    power = x.square().mean((1, 2, 3)).clamp_min(1e-12)
    out = torch.ones(FARTHEST + 1, FARTHEST + 1)
    for v in range(FARTHEST + 1):
        for u in range(FARTHEST + 1):
            down = (x[:, v:, u:] * x[:, : S - v, : S - u]).mean((1, 2, 3))
            up = (x[:, v:, : S - u] * x[:, : S - v, u:]).mean((1, 2, 3))
            out[v, u] = ((down + up) / (2 * power)).median()
    return out


def flat(pictures: Sequence[Tensor], side: int = 16, share: float = 0.02) -> Tensor:
    """Where pictures (H, W, 3) are flattest: patches (N, side, side, 3), each without its slope, so that what is left is noise.

    The calmest `share` of all patches, 16 at least, and none from where a picture is black or burnt out.
    """
    kept: list[Tensor] = []
    for picture in pictures:
        if min(picture.shape[:2]) < side:
            continue
        cells = picture.float().unfold(0, side, side).unfold(1, side, side).permute(0, 1, 3, 4, 2).reshape(-1, side, side, 3)
        mean = cells.mean((1, 2, 3))
        kept.append(cells[(mean > 0.05) & (mean < 0.95)])
    cells = torch.cat(kept) if kept else torch.empty(0, side, side, 3)
    ramp = torch.arange(side) - (side - 1) / 2
    x = cells - cells.mean((1, 2), keepdim=True)
    for axis in (ramp[:, None, None], ramp[None, :, None]):
        x = x - axis * (x * axis).mean((1, 2), keepdim=True) / (axis**2 * torch.ones(side, side, 1)).mean()
    power = x.square().mean((1, 2, 3))
    x, power = x[power > 1e-9], power[power > 1e-9]
    return x[power.argsort()[: max(16, int(share * len(x)))]]


@dataclass(frozen=True)
class Apart:
    """How far apart, and in which directions, pixels must lie for their noise to be independent."""

    step: int
    down: bool
    across: bool
    holds: bool
    found: Tensor

    @classmethod
    def of(cls, found: Tensor) -> Apart:
        """By `correlation`'s table: the smallest step at which one direction at least is free."""
        for step in range(1, FARTHEST + 1):
            down, across = (abs(found[v, u].item()) <= CORRELATED for v, u in ((step, 0), (0, step)))
            if down or across:
                return cls(step, down, across, True, found)
        return cls(FARTHEST, True, True, False, found)

    @property
    def turns(self) -> bool:
        """Whether the noise looks the same when the picture is turned by 90 degrees."""
        return abs(self.found[1, 0].item() - self.found[0, 1].item()) <= CORRELATED

    @property
    def choices(self) -> Tensor:
        """(K, 2): the ordered pairs of places in a cell of 2 x 2, counted row by row, that may be input and target."""
        places = [(0, 2), (2, 0), (1, 3), (3, 1)] * self.down + [(0, 1), (1, 0), (2, 3), (3, 2)] * self.across
        return torch.tensor(places)

    @property
    def told(self) -> str:
        along, down = (round(self.found[at].item(), 2) + 0.0 for at in ((0, 1), (1, 0)))  # and no -0.00
        neighbours = f"{along:.2f} along rows, {down:.2f} along columns"
        if not self.holds:
            return (
                f"The method's assumption does not hold: noise is correlated over {FARTHEST} pixels and more (neighbours: {neighbours}), "
                "or no patch is flat enough to see it. The model may keep a part of the noise: prefer pairs of shots."
            )
        if self.step > 1:
            return (
                f"The method's assumption holds in part: noise is correlated between neighbours ({neighbours}), so pixels {self.step} "
                "apart were paired, and the network saw finer noise than it will meet. It may keep a part: prefer pairs of shots."
            )
        if not (self.down and self.across):
            free, other = ("columns", "rows") if self.down else ("rows", "columns")
            return (
                f"The method's assumption holds along {free} alone: noise is correlated along {other}, as stripes are ({neighbours}), so "
                f"only neighbours along {free} were paired."
            )
        return f"The method's assumption holds: the noise of neighbours is independent (correlation {neighbours})."


# The sources.


class _Pictures:
    """Pictures as they are, nothing developed or shrunk: that would change their noise. Their levels are found once, when first needed."""

    def __init__(self, pictures: Sequence[Tensor], untold: float | None) -> None:
        self.pictures, self._untold = pictures, untold
        self._levels: dict[int, float] = {}

    def level(self, index: int) -> float:
        if index not in self._levels:
            self._levels[index] = _level(self.pictures[index], self._untold)
        return self._levels[index]


def _level(picture: Tensor, untold: float | None) -> float:
    if untold is not None:
        return untold
    return noise.estimate_gaussian(picture.float()) * (noise.GREY_LEVEL if noise.is_grey(picture) else 1.0)


def _read(paths: Sequence[Path], most: int) -> list[Tensor]:
    """float16, the middle of each where all of them together have more than `most` pixels."""
    with ThreadPoolExecutor(2) as readers:
        return list(readers.map(lambda path: _middle(data.pixels(path), most // len(paths)), paths))


def _read_pairs(paths: Sequence[tuple[Path, Path]], most: int) -> list[tuple[Tensor, Tensor]]:
    """Both of each as `_read` has them, on one scale. Raises DataError if they differ in size."""

    def read(pair: tuple[Path, Path]) -> tuple[Tensor, Tensor]:
        one, other = data.shots(*pair)
        if one.shape != other.shape:
            raise data.DataError(f"{pair[0]} and {pair[1]} differ in size: the two of a pair must show the same, pixel by pixel")
        return _middle(one, most // (2 * len(paths))), _middle(other, most // (2 * len(paths)))

    with ThreadPoolExecutor(2) as readers:
        return list(readers.map(read, paths))


def _middle(pixels: Tensor, most: int) -> Tensor:
    """float16, of at most about `most` pixels."""
    H, W, _ = pixels.shape
    if most < H * W:
        shrink = math.sqrt(most / (H * W))
        h, w = max(1, int(H * shrink)), max(1, int(W * shrink))
        pixels = pixels[(H - h) // 2 :, (W - w) // 2 :][:h, :w]
    return pixels.half()


def _piece(picture: Tensor, multiple: int = MULTIPLE) -> Tensor:
    """The middle of a picture, PIECE wide at most, cut to what the network takes."""
    H, W = (min(PIECE, size) // multiple * multiple for size in picture.shape[:2])
    top, left = (picture.shape[0] - H) // 2, (picture.shape[1] - W) // 2
    return picture[top : top + H, left : left + W].float()


def _told(untold: float | None) -> str:
    return "the level told is estimated from each picture" if untold is None else "no level is told, as with the parent"


def _held_out(count: int) -> list[int]:
    return list(range(0, count, max(HELD_OUT, count // HELD_OUT)))[:HELD_OUT]


def _turned(patch: Tensor, turn: int, turns: bool) -> Tensor:
    """One of eight orientations, or of the four in which rows stay rows."""
    if turns:
        patch = patch.rot90(turn % 4)
        return patch.flip(1) if turn >= 4 else patch
    return patch.flip([axis for axis in (0, 1) if turn >> axis & 1])


class _Cuts:
    """Where a step's patches are cut: picture, place and orientation, by the step's own random numbers."""

    def __init__(self, sizes: Sequence[tuple[int, int]], side: int) -> None:
        self.side = side
        self.areas = torch.tensor([float(h * w) if min(h, w) >= side else 0.0 for h, w in sizes])

    def draw(self, size: int, generator: torch.Generator) -> Iterator[tuple[int, float, float, int]]:
        chosen = torch.multinomial(self.areas, size, replacement=True, generator=generator).tolist()
        places = torch.rand(size, 2, generator=generator).tolist()
        turns = torch.randint(8, (size,), generator=generator).tolist()
        return ((index, v, u, turn) for index, (v, u), turn in zip(chosen, places, turns, strict=True))

    def cut(self, picture: Tensor, v: float, u: float) -> Tensor:
        P = self.side
        y, x = int(v * (picture.shape[0] - P + 1)), int(u * (picture.shape[1] - P + 1))
        return picture[y : y + P, x : x + P]


class Pairs:
    """Noise2Noise (Lehtinen et al., ICML 2018): the target is another noisy shot, or a clean one.

    The mean of the squared error is least at the mean of all shots that fit the input, which is the truth when noise has none: so the
    loss is MSE. The paper's derivation needs the two shots' noise to be independent, of mean 0, and nothing to have moved. Noise that
    was clipped where a picture is black or white has another mean: there the loss is that of censored values, `core.nn.Censored`.
    """

    margin = 0.0
    summary = "Learned from pairs of pictures of one camera, scanner or microscope; made for its noise."

    def __init__(self, folders: Sequence[Path], batch: int, patch: int, steps: int, seed: int, untold: float | None = None) -> None:
        self.size, self.steps, self.seed, self.untold = batch, steps, seed, untold
        self.levels = _told(untold)
        paths = data.find(folders)
        found = pair([path.as_posix() for path in paths])
        if len(found.pairs) < 2:
            raise data.DataError(f"{len(found.pairs)} pairs were found: two are needed at least, one to train on and one to measure with")
        self.clean = found.clean
        shots = _read_pairs([(paths[a], paths[b]) for a, b in found.pairs], MOST_PIXELS)
        firsts, seconds = [one for one, _ in shots], [other for _, other in shots]
        self.grey = all(map(noise.is_grey, firsts + seconds))
        held = _held_out(len(firsts))
        self._held = [(_piece(firsts[i]), _piece(seconds[i]), _level(firsts[i], untold)) for i in held]
        self._held = [h for h in self._held if 0 not in h[0].shape]
        if not self._held:
            raise _too_small(patch)
        dark, light = (0.0, 0.0) if self.clean else noise.at_the_ends((one, other) for one, other, _ in self._held)
        self.loss: Loss = MSE() if self.clean else Censored(dark, light)
        self._within = [_within(one, other, dark, light) for one, other, _ in self._held]
        # What the two differ by is noise alone. Where it has a direction, pictures keep theirs.
        self._turns = Apart.of(correlation(flat([one - other + 0.5 for one, other, _ in self._held], share=1))).turns
        rest = [i for i in range(len(firsts)) if i not in set(held)]
        both = [(firsts[i], seconds[i]) for i in rest] + ([] if self.clean else [(seconds[i], firsts[i]) for i in rest])
        self._inputs, self._targets = _Pictures([one for one, _ in both], untold), [other for _, other in both]
        self._cuts = _Cuts([(one.shape[0], one.shape[1]) for one, _ in both], patch)
        if not self._cuts.areas.any():
            raise _too_small(patch)
        self.what = (
            "PSNR in dB against the clean pictures"
            if self.clean
            else "PSNR in dB against the truth, estimated from pairs: half of their mean squared difference is the noise of the other shot"
        )
        self.note = (
            "The second picture of each pair was taken as free of noise."
            if self.clean
            else ("The two shots' noise must be independent and nothing may have moved between them; neither can be seen in the pictures.")
        )

    def batches(self, first: int, denoise: Denoise, share: slice = slice(None)) -> Iterator[Batch]:
        for step in range(first, self.steps):
            drawn = list(self._cuts.draw(self.size, data.generator_of(self.seed, step)))[share]

            def cut(pictures: Sequence[Tensor], drawn: list[tuple[int, float, float, int]] = drawn) -> Tensor:
                return torch.stack([_turned(self._cuts.cut(pictures[i], v, u), turn, self._turns) for i, v, u, turn in drawn]).float()

            levels = torch.tensor([self._inputs.level(i) for i, *_ in drawn]).view(-1, 1, 1, 1)
            yield cut(self._inputs.pictures), cut(self._targets), levels

    def measure(self, denoise: Denoise) -> float:
        wrong = floor = 0.0
        for (noisy, other, level), within in zip(self._held, self._within, strict=True):
            wrong += (denoise(noisy[None], level)[0].clamp(0, 1) - other)[within].double().square().mean().item()
            floor += 0.0 if self.clean else (noisy - other)[within].double().square().mean().item() / 2
        # E (f(a) - b)^2 = E (f(a) - x)^2 + E (b - x)^2, and for two shots alike E (a - b)^2 = 2 E (b - x)^2.
        return -10 * math.log10(max(wrong - floor, 1e-6 * len(self._held)) / len(self._held))

    def sample(self) -> tuple[Tensor, float]:
        noisy, _, level = self._held[0]
        return noisy, level


def _within(one: Tensor, other: Tensor, dark: float, light: float) -> Tensor:
    """Where the noise of two shots (H, W, C) is clipped to [0, 1] so seldom that its mean is still 0: two deviations from both ends."""
    around = noise.block_means((one + other) / 2)
    within = (around >= 2 * dark) & (around <= 1 - 2 * light)
    if within.float().mean() < 0.1:  # too little to measure on
        within = torch.ones_like(within)
    return within.repeat_interleave(noise.BLOCK, 0).repeat_interleave(noise.BLOCK, 1)


class Neighbours:
    """Neighbor2Neighbor (Huang et al., CVPR 2021): of two neighbouring pixels one is the input's, the other the target's.

    From every cell of 2 x 2 pixels two are drawn, which makes two pictures g1(y), g2(y) of half the size whose noise is independent if that
    of neighbours is. It was taken because it needs no blind spot in the network: the shipped models can go on from where they are, and what
    is served sees every pixel. What neighbours differ by is signal too; the paper's regulariser takes it out of the loss,

        (f(g1) - g2)^2 + R (f(g1) - g2 - (g1(D) - g2(D)))^2,    D = f(y), through which no derivative is passed

    and since both are squares around a fixed target, their sum has the derivative of (1 + R) (f(g1) - t)^2 with
    t = g2 + R / (1 + R) (g1(D) - g2(D)). So the loss is MSE, and the regulariser is in the target.
    """

    margin = 0.1  # its figure is of halves, where a model may gain a little that it loses on whole pictures
    summary = "Learned from noisy pictures alone, of one camera, scanner or microscope; made for their noise."

    def __init__(
        self, folders: Sequence[Path], batch: int, patch: int, steps: int, seed: int, ramp: bool, untold: float | None = None
    ) -> None:
        self.loss: Loss = MSE()
        self.size, self.steps, self.seed, self.ramp, self.untold = batch, steps, seed, ramp, untold
        self.levels = _told(untold)
        paths = data.find(folders)
        if len(paths) < 2:
            raise data.DataError(f"{len(paths)} pictures were found: two are needed at least, one to train on and one to measure with")
        pictures = _read(paths, MOST_PIXELS)
        self.grey = all(map(noise.is_grey, pictures))
        self.apart = Apart.of(correlation(flat(pictures[:: max(1, len(pictures) // 64)])))
        cell = 2 * self.apart.step
        held = _held_out(len(pictures))
        self._held = [(_piece(pictures[i], cell * MULTIPLE), _level(pictures[i], untold)) for i in held]
        self._held = [h for h in self._held if 0 not in h[0].shape]
        self._inputs = _Pictures([picture for i, picture in enumerate(pictures) if i not in set(held)], untold)
        largest = max(min(picture.shape[:2]) for picture in self._inputs.pictures)
        self.patch = min(patch, largest // cell // MULTIPLE * MULTIPLE)
        if not self._held or self.patch < MULTIPLE:
            raise data.DataError(f"no picture has {cell * MULTIPLE}x{cell * MULTIPLE} pixels: add larger pictures")
        self._cuts = _Cuts([(p.shape[0], p.shape[1]) for p in self._inputs.pictures], self.patch * cell)
        self.note = self.apart.told
        self.what = (
            "self-supervised: PSNR in dB of one denoised half of the pixels against their noisy neighbours; these neighbours' noise stays "
            f"in it, so differences count, and only those above {self.margin} dB: at whole size a model may do otherwise"
        )

    def halves(self, pictures: Tensor, chosen: Tensor, phase: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
        """g1, g2 of pictures (N, cell h, cell w, 3): (N, h, w, 3) each. `chosen`: (N, h, w), which of `apart.choices` a cell takes."""
        s = self.apart.step
        fine = pictures[:, phase[0] :: s, phase[1] :: s]
        N, H, W, C = fine.shape
        cells = fine.reshape(N, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 2, 4, 5).reshape(N, H // 2, W // 2, 4, C)
        places = self.apart.choices[chosen].to(pictures.device)  # (N, h, w, 2)
        both = cells.gather(3, places[..., None].expand(*places.shape, C))
        return both[..., 0, :], both[..., 1, :]

    def _choose(self, size: int, h: int, w: int, generator: torch.Generator) -> Tensor:
        """(size, h, w), one of `apart.choices` for each cell.

        Stripes go on over all cells of a row: these take the same row, or the halves would have lost the stripes that are to be learned.
        """
        if self.apart.down and self.apart.across:
            return torch.randint(len(self.apart.choices), (size, h, w), generator=generator)
        along = (size, h, 1) if self.apart.down else (size, 1, w)
        return 2 * torch.randint(2, (size, h, w), generator=generator) + torch.randint(2, along, generator=generator)

    def batches(self, first: int, denoise: Denoise, share: slice = slice(None)) -> Iterator[Batch]:
        s, P = self.apart.step, self.patch
        for step in range(first, self.steps):
            generator = data.generator_of(self.seed, step)
            drawn = list(self._cuts.draw(self.size, generator))[share]
            cuts = [_turned(self._cuts.cut(self._inputs.pictures[i], v, u), turn, self.apart.turns) for i, v, u, turn in drawn]
            whole = torch.stack(cuts).float()
            levels = torch.tensor([self._inputs.level(i) for i, *_ in drawn]).view(-1, 1, 1, 1)
            chosen = self._choose(self.size, P, P, generator)[share]
            y, x = torch.randint(s, (2,), generator=generator).tolist()
            one, other = self.halves(whole, chosen, (y, x))
            weight = REGULAR * (min(1.0, 2 * step / self.steps) if self.ramp else 1.0)
            if weight:
                d1, d2 = self.halves(denoise(whole, levels).cpu(), chosen, (y, x))
                other = other + weight / (1 + weight) * (d1 - d2)
            yield one, other, levels

    def measure(self, denoise: Denoise) -> float:
        wrong = 0.0
        for index, (piece, level) in enumerate(self._held):
            cell = 2 * self.apart.step
            generator = data.generator_of(0, index)
            chosen = self._choose(1, piece.shape[0] // cell, piece.shape[1] // cell, generator)
            one, other = self.halves(piece[None], chosen)
            wrong += (denoise(one, level).clamp(0, 1) - other).double().square().mean().item()
        return -10 * math.log10(max(wrong / len(self._held), 1e-6))

    def sample(self) -> tuple[Tensor, float]:
        piece, level = self._held[0]
        return piece, level


def beside(panels: Sequence[Tensor]) -> Tensor:
    """Pictures (H, W, 3) of one size -> one picture of all, side by side, as a reader of the file will see them."""
    return torch.cat([metrics.to_8bit(panel) for panel in panels], 1)
