"""Noise: put on clean pictures, and measured in noisy ones. Knows nothing of networks. `sigma` is in [0, 1] image units throughout."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SHOT = (1e-4, 1.2e-2)
"""Variance of photon noise in raw values, per unit of signal. Range and the next two: Brooks et al., "Unprocessing Images", CVPR 2019."""
READ = (2.18, 1.20, 0.26)
"""ln(variance of read noise) = READ[0] ln(shot) + READ[1], and a normal deviation of READ[2]: measured on the Darmstadt set's cameras."""
WHITE_BALANCE = ((1.9, 2.4), (1.0, 1.0), (1.5, 1.9))
"""How much a camera raises red, green and blue, and their noise with them."""
COLOUR_MATRIX = (0.0, 0.3)
"""What each channel takes from the two others on the way from a camera's colours to sRGB; rows sum to 1."""
GAMMA = 2.2
SHRUNK = 0.3
"""The share of pictures that are shown smaller than they were taken: a pixel is then the mean of many of the sensor's, its neighbours have
none of them, and of a mosaic nothing is seen. What smooths the noise of their lightness reaches less far, by SHRUNK_REACH. They are sharp;
all others are at full size, see ENLARGEMENT: so noise that goes over several pixels comes with scenes that are soft."""
SHRUNK_REACH = 0.3
SMOOTHED = 0.75
"""The share of pictures whose noise a camera's noise reduction, a scanner or an enlargement has smoothed: what is left is blotches.

Lebrun, Colom, Morel, "The Noise Clinic", IPOL 2015: noise in developed pictures goes over many pixels, and most of all its colours.
"""
SMOOTHING = (0.0, 2.5)
"""Deviation in pixels of the blur of the noise's lightness: from none, by way of demosaicing, to an enlargement by four."""
COLOUR_SMOOTHING = (0.0, 4.0)
"""The same of its colours, in addition: cameras smooth them more, since eyes see less of it."""
SPARED = (0.25, 1.0)
"""What noise reduction leaves in flat parts, as a share of what it leaves in texture: it averages where a picture is even and spares what
varies (Tomasi, Manduchi, "Bilateral filtering", ICCV 1998). It cannot tell noise from faint texture: of a scene's lightness at full size,
what differs from the vicinity's mean is left as the noise there is. On every eighth pair of PolyU, deviations in the busiest quarter of a
picture were 1.2 to 4 times those of the calmest at the same brightness, and the noise was as blotchy in both."""
VARYING = (2 / 255, 16 / 255)
"""The deviation of a scene's lightness at which half of that is spared, uniform in its logarithm."""
VICINITY = 2.0
"""Deviation in pixels of the window in which that is measured."""
SHARPENING = (0.0, 0.5)
"""How much of what a blur of one pixel takes away is put on top, along rows and then columns, in every second picture."""
JPEG_QUALITY = (40, 100)
"""With colours at half resolution in every second, as phones write them (Guo et al., CBDNet, CVPR 2019)."""
KEPT_QUALITY = 60
"""From here on what JPEG makes of a scene is the picture that its camera would have written without noise, and what is to be made of the
noisy one: what was rounded away nobody could tell, only invent. What heavier compression leaves is a fault, to be taken away."""
COMPRESSED = (0.75, 0.3)
"""The share of pictures that are compressed, and then again, as what was cropped or turned is saved anew: blocks begin anywhere."""

ENLARGEMENT = (1.0, 4.0)
"""By how much clean pictures are enlarged to be a camera's at full size, uniform in its logarithm. Those show little in a patch: edges far
apart and hardly any texture, where a photograph made small for a collection is full of it. Between 0.2 and 0.5 of the sampling rate the
means of PolyU hold 11 in squared 8-bit steps, training pictures 117, and 7 enlarged and softened so."""
SOFTNESS = (0.3, 1.5)
"""Deviation in pixels of the blur that then softens them: a mosaic's, a lens's, noise reduction's. They are sharpened as their noise is."""
MOSAIC_SOFTNESS = 0.7
"""The same of their colours, in addition: that of the mean of a mosaic's nearest values, of which red and blue have every second. What a
camera's noise reduction smooths of the noise's colours, it smooths of theirs, but spares edges: from none of it to all. Around 0.12 of the
sampling rate the means of PolyU hold a 155th as much colour as lightness, training pictures a 41st, at any frequency."""

UNTOLD = -0.1
"""Stands in a noise-level map where the level is not told: a network that has learned with it finds the level by itself. Any number does,
one that the network has never seen as well as one that it knows (see `weights.untold`)."""
TOLD = 0.25
"""The share of pictures whose level such a network is told in training, so that it heeds one that is given by hand."""
UNTOUCHED = 0.1
"""The share of pictures to which nothing is added when such a network is trained: what looks like noise may be sand, and is to stay."""

GREY_LEVEL = math.sqrt(3)
"""What a network is told of a grey picture's noise, as a multiple: equal in three channels, it weighs on the lightness as independent
noise of that much more in each does. A network that has seen nothing grey denoises it best so (measured: by 5.5 dB, and to a hundredth).
"""


def add_gaussian(clean: Tensor, sigma: Tensor | float, generator: torch.Generator) -> Tensor:
    """White Gaussian noise of standard deviation `sigma` on every channel, not clipped. `sigma` may broadcast to the picture."""
    return clean + sigma * _normal(clean.shape, clean.device, generator)


def _normal(shape: torch.Size, device: torch.device, generator: torch.Generator) -> Tensor:
    """Normal deviates; on another device than the generator's, its own generator's, which this one seeds."""
    if device != generator.device:
        seed = int(torch.randint(2**31, (), generator=generator))
        generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)


def add_photographic(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What cameras might have made of scenes (N, H, W, 3): the noise of a raw sensor, developed and compressed. In 8-bit steps, in [0, 1].
    And the scenes without noise as the same camera shows them: but for those SHRUNK the middle, enlarged and softened, and rid of faint
    texture as of noise; then compressed as the noisy ones are, from KEPT_QUALITY on, or else with their colours halved where JPEG has
    halved the others', for nobody could tell from the picture what they were.

    In the order in which light takes it: linear light; the sensor's photon and read noise on a Bayer mosaic (Foi et al. 2008); white
    balance; demosaicing, or shrinking; colour matrix; noise reduction, which spares texture, and sharpening; gamma; 8 bits; JPEG. Every
    step up to gamma is linear, so the noise alone passes through them and is added to the picture: no detail is lost to the mosaic that a
    denoiser would then have to invent. Of what gamma makes of the noise, only the part that turns its sign with it is taken, so that a
    denoiser has no brightness to change.
    """
    N, H, W, _ = clean.shape

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(N, 1, 1, 1, generator=generator)

    def share(of_pictures: float) -> Tensor:
        return torch.rand(N, 1, 1, 1, generator=generator) < of_pictures

    shrunk, smoothed = share(SHRUNK), share(SMOOTHED)
    lightness, colours = smoothed * between(*SMOOTHING), smoothed * between(*COLOUR_SMOOTHING)
    lightness = torch.where(shrunk, SHRUNK_REACH * lightness, lightness)
    sharpening = share(0.5) * between(*SHARPENING)
    in_scene = (MOSAIC_SOFTNESS**2 + (between(0, 1) * colours).square()).sqrt()
    clean = torch.where(shrunk, clean, soften(enlarge(clean, generator), in_scene, sharpening, generator))
    left, seen = _spared(clean, between(*SPARED), between(*map(math.log, VARYING)).exp_())
    clean = torch.where(smoothed & ~shrunk, seen, clean)
    light = clean.movedim(3, 1).contiguous().pow_(GAMMA)  # (N, 3, H, W)
    gains = torch.cat([between(*channel) for channel in WHITE_BALANCE], 1)
    shot = between(*map(math.log, SHOT)).exp_()
    read = (READ[0] * shot.log() + READ[1] + READ[2] * torch.randn(shot.shape, generator=generator)).exp_()
    mosaic = _bayer(H, W)[torch.randint(4, (N,), generator=generator)]
    deviation = (gains * (shot * light + read * gains)).sqrt_()  # of gains times raw values that hold light / gains
    added = _demosaic(mosaic * deviation * torch.randn(N, 1, H, W, generator=generator))
    added = torch.where(shrunk, deviation.mul_(torch.randn(N, 3, H, W, generator=generator)), added)
    added = _reduced(added, 1 + 3 * between(*COLOUR_MATRIX), lightness, colours, sharpening, between(0, 1))
    added *= torch.where(smoothed, left, 1.0)
    developed = (light + added).clamp_(0, 1).pow_(1 / GAMMA) - light.sub_(added).clamp_(0, 1).pow_(1 / GAMMA)
    scene = clean.clone()
    steps = developed.movedim(1, 3).mul_(0.5).add_(clean).clamp_(0, 1).mul_(255).round_().to(torch.uint8).contiguous()
    for often in COMPRESSED:
        quality, halved = between(*JPEG_QUALITY).round_().flatten().tolist(), share(0.5).flatten().tolist()
        places = torch.randint(16, (N, 2), generator=generator).tolist()
        for i in share(often).flatten().nonzero().flatten().tolist():
            subsampling = 2 if halved[i] else 0
            steps[i] = _through_jpeg(steps[i], int(quality[i]), subsampling, places[i])
            if quality[i] >= KEPT_QUALITY:
                written = scene[i].mul(255).round_().to(torch.uint8)
                scene[i] = _through_jpeg(written, int(quality[i]), subsampling, places[i]).float().div_(255)
            elif halved[i]:
                scene[i] = _with_halved_colours(scene[i], places[i])
    return steps.float().div_(255), scene


def level_of(added: Tensor) -> float:
    """The deviation of noise from 0, over the picture and all channels."""
    return added.square().mean().sqrt().item()


def soften(clean: Tensor, colours: Tensor, sharpening: Tensor, generator: torch.Generator) -> Tensor:
    """(N, H, W, 3) -> the same, blurred and sharpened as cameras' pictures are at full size: scenes that smoothed noise belongs to.

    `colours` (N, 1, 1, 1) is the deviation of the blur of their colours in pixels, in addition, and `sharpening` is as for the noise.
    """
    N, H, W, _ = clean.shape
    low, high = SOFTNESS
    deviation = low + (high - low) * torch.rand(N, 1, 1, 1, generator=generator)
    scenes = clean.movedim(3, 1)
    red, blue = (scenes[:, channel] - scenes[:, 1] for channel in (0, 2))  # nothing of a grey scene, to the bit
    planes = torch.stack((scenes.mean(1), (2 * red - blue) / 3, (2 * blue - red) / 3), 1)
    down, across = (_smoothers(size, deviation, colours, sharpening) for size in (H, W))
    soft = down @ planes @ across
    return _from_planes(soft).clamp_(0, 1).movedim(1, 3).contiguous()


def enlarge(clean: Tensor, generator: torch.Generator) -> Tensor:
    """(N, H, W, 3) in [0, 1] -> of each the middle, as large as the whole, by cubic convolution (Keys 1981)."""
    N, H, W, _ = clean.shape
    low, high = map(math.log, ENLARGEMENT)
    factor = (low + (high - low) * torch.rand(N, 1, 1, generator=generator)).exp_()
    large: Tensor = _stretchers(H, factor) @ clean.movedim(3, 1) @ _stretchers(W, factor).mT
    return large.movedim(1, 3).clamp_(0, 1).contiguous()


def _stretchers(size: int, factor: Tensor) -> Tensor:
    """(N, 1, 1) -> (N, 1, size, size): in row i the weights of the pixels that pixel i of the enlarged middle is made of."""
    middle, grid = (size - 1) / 2, torch.arange(float(size))
    away = (middle + (grid - middle) / factor).unsqueeze(3).sub(grid).abs_()
    near, far = 1 + away**2 * (1.5 * away - 2.5), 2 + away * (away * (2.5 - 0.5 * away) - 4)
    weights = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
    return weights / weights.sum(3, keepdim=True)  # at the border too


TOGETHER = 8
"""Pictures that get a camera's noise at a time. Of more, what one step leaves is out of the cache when the next one needs it: 2.0
megapixels a second and core in place of 3.0, with 112 pictures of 192x192."""


def add_either(
    clean: Tensor, sigma: Tensor, photographic: float, generator: torch.Generator, untold: float = UNTOLD
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy pictures (N, H, W, 3) to learn from, what is to be made of them, and noise levels (N, 1, 1, 1) to tell, the deviation of what
    was added, over the picture.

    A share of `photographic` gets a camera's noise, the others Gaussian noise of deviation `sigma`. A grey picture stays grey, and its
    level is told as GREY_LEVEL has it. If there is any camera's noise, whose level nobody knows later, most pictures' level is `untold`,
    and some pictures are UNTOUCHED.
    """
    grey = (clean == clean[..., :1]).flatten(1).all(1).view(-1, 1, 1, 1)
    added = _normal(clean.shape, clean.device, generator)
    noisy = clean + sigma * torch.where(grey, added[..., :1], added)
    telling = torch.where(grey, GREY_LEVEL, 1.0)
    if photographic == 0:
        return noisy, clean, sigma * telling
    chosen = (torch.rand(len(clean), generator=generator) < photographic).nonzero().flatten()
    parts = [add_photographic(clean[part], generator) for part in torch.split(chosen, TOGETHER)]
    developed, scene = (torch.cat(which) for which in zip(*parts, strict=True))
    noisy[chosen] = torch.where(grey[chosen], developed.mean(3, keepdim=True), developed)
    clean = clean.index_copy(0, chosen, torch.where(grey[chosen], scene.mean(3, keepdim=True), scene))
    sigma = sigma.index_copy(0, chosen, (noisy[chosen] - clean[chosen]).square().mean((1, 2, 3), keepdim=True).sqrt_())
    untouched = torch.rand(sigma.shape, generator=generator) < UNTOUCHED
    noisy, sigma = torch.where(untouched, clean, noisy), sigma.masked_fill(untouched, 0.0)
    told = torch.rand(sigma.shape, generator=generator) < TOLD
    return noisy, clean, torch.where(told, sigma * telling, torch.tensor(untold))


def _bayer(H: int, W: int) -> Tensor:
    """(4, 3, H, W), 1 where a sensor's colour filter lets a channel through, in four turns: green on one diagonal, the others beside it."""
    tile = torch.tensor([[[1.0, 0], [0, 0]], [[0, 1], [1, 0]], [[0, 0], [0, 1]]])
    return torch.stack([tile.rot90(turn, (1, 2)) for turn in range(4)]).repeat(1, 1, -(-H // 2), -(-W // 2))[..., :H, :W]


def _demosaic(mosaic: Tensor) -> Tensor:
    """The mean of the nearest values that mosaics (N, 3, H, W) hold of each channel; over the edge it goes on at the opposite one."""

    def beside(x: Tensor, axis: int) -> Tensor:
        return x.roll(1, axis) + x.roll(-1, axis)

    green, others = mosaic[:, 1:2], mosaic[:, ::2]
    others = others + beside(others, 3) / 2
    others = others + beside(others, 2) / 2  # twice, so that the middle of four takes a quarter of each
    green = green + (beside(green, 3) + beside(green, 2)) / 4
    return torch.cat((others[:, :1], green, others[:, 1:]), 1)


def _reduced(added: Tensor, saturation: Tensor, lightness: Tensor, colours: Tensor, sharpening: Tensor, kept: Tensor) -> Tensor:
    """Noise (N, 3, H, W) after colour matrix, noise reduction and sharpening; all else is (N, 1, 1, 1), deviations in pixels.

    A colour matrix with rows (1 + 2m, -m, -m) multiplies the difference from grey by 1 + 3m, which is `saturation`. Blurred by one pixel,
    white noise keeps a quarter of its level; but cameras smooth more where there is more to smooth, and enlarging smooths at no loss: so
    of that factor's logarithm, the share `kept` is taken back.
    """
    _, _, H, W = added.shape
    grey = added.mean(1, keepdim=True)
    planes = torch.cat((grey, (added[:, ::2] - grey) * saturation), 1)  # lightness, red, blue
    down = _smoothers(H, lightness, colours, sharpening)
    across = down if H == W else _smoothers(W, lightness, colours, sharpening)
    smooth = down @ planes @ across  # which is its own transpose
    smooth *= (_power(planes) / _power(smooth)) ** (kept / 2)
    return _from_planes(smooth)


def _from_planes(planes: Tensor) -> Tensor:
    """(N, 3, H, W): the mean of red, green and blue, and the differences of red and of blue from it -> red, green and blue."""
    grey, colour = planes[:, :1], planes[:, 1:]
    return torch.cat((colour[:, :1], -colour.sum(1, keepdim=True), colour[:, 1:]), 1).add_(grey)


def _spared(clean: Tensor, flat: Tensor, varying: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H, W, 3), (N, 1, 1, 1) twice -> (N, 1, H, W): `flat` where scenes are even, 1 where they vary by far more than `varying`. And
    the scenes with that much of how their lightness differs from the mean of its vicinity, (N, H, W, 3).
    """
    _, H, W, _ = clean.shape
    window, none = torch.full_like(flat, VICINITY), torch.zeros_like(flat)
    down, across = (_smoothers(size, window, none, none)[:, :1] for size in (H, W))
    grey = clean.mean(3).unsqueeze(1)
    mean = down @ grey @ across
    variance = (down @ grey.square() @ across).sub_(mean.square()).clamp_(min=0)
    left = flat + (1 - flat) * variance / (variance + varying.square())
    return left, (clean - ((1 - left) * grey.sub_(mean)).movedim(1, 3)).clamp_(0, 1)


def _power(planes: Tensor) -> Tensor:
    """The sum of squares of red, green and blue, given the lightness and two differences from it, which add up to 0 with the third."""
    grey, red, blue = (plane[:, None] for plane in planes.unbind(1))
    return (3 * grey * grey + 2 * (red * red + blue * blue + red * blue)).mean((1, 2, 3), keepdim=True)


LEAST = 1e-20
"""Of a weight beside one of 1. Among smaller ones are numbers so small (1e-38) that some processors take fifty times as long for them."""


def _smoothers(size: int, lightness: Tensor, colours: Tensor, sharpening: Tensor) -> Tensor:
    """(N, 3, size, size), what each pixel of a row or column takes from the others, in the three planes; round the edge."""

    def blur(variance: Tensor) -> Tensor:
        weights = torch.exp(-distance.square() / (2 * variance + 1e-6))  # 0 apart and 0 variance: 1
        weights = torch.where(weights < LEAST, 0.0, weights)
        return weights / weights.sum(3, keepdim=True)

    apart = torch.arange(float(size))
    distance = torch.minimum(apart, size - apart)
    variance = lightness.square()
    sharp = (1 + sharpening) * blur(variance) - sharpening * blur(variance + 1)
    weights = torch.cat((sharp, *(2 * [blur(variance + colours.square())])), 1)[:, :, 0]  # (N, 3, size)
    return torch.cat((weights, weights), 2).unfold(2, size, 1)[:, :, 1:].flip(2)


def _through_jpeg(steps: Tensor, quality: int, subsampling: int, place: Sequence[int]) -> Tensor:
    """(H, W, 3) uint8 -> the same, as JPEG leaves it; a block, 8 or, with colours at half resolution, 16 wide, begins at `place`."""
    down, across = place
    file = io.BytesIO()
    Image.fromarray(steps.roll((-down, -across), (0, 1)).numpy()).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return torch.from_numpy(np.array(Image.open(file))).roll((down, across), (0, 1))


LIGHTNESS = (0.299, 0.587, 0.114)
"""What JPEG takes of red, green and blue for a picture's lightness (ITU-R BT.601)."""


def _with_halved_colours(scene: Tensor, place: Sequence[int]) -> Tensor:
    """(H, W, 3) in [0, 1] -> the same with colours at half resolution, as JPEG writes and reads them where blocks begin at `place`: each of
    two by two pixels gets their mean, then three quarters of its own and a quarter of the neighbour's, along rows and columns."""
    H, W, _ = scene.shape
    red, green, blue = LIGHTNESS
    lightness = scene @ scene.new_tensor(LIGHTNESS)
    beside = torch.stack((scene[..., 0] - lightness, scene[..., 2] - lightness))
    down, across = (_halver(size, begin).to(scene) for size, begin in zip((H, W), place, strict=True))
    reds, blues = down @ beside @ across.T
    greens = (red * reds + blue * blues) / -green
    return torch.stack((reds, greens, blues), 2).add_(lightness.unsqueeze(2)).clamp_(0, 1)


def _halver(size: int, begin: int) -> Tensor:
    """(size, size), what each pixel of a row or column takes from the others when pairs from `begin` on are halved and enlarged again."""
    at = (torch.arange(size) - begin) % size
    pair, pairs = at // 2, -(-size // 2)
    means = torch.zeros(pairs, size)
    means[pair, torch.arange(size)] = 1.0
    means /= means.sum(1, keepdim=True)
    beside = (pair + 2 * (at % 2) - 1).clamp(0, pairs - 1)
    return 0.75 * means[pair] + 0.25 * means[beside]


DIMENSIONS = 80
"""Of a patch, at most: 5x5 in colour and 8x8 in grey tell noise from texture as well as larger ones, which cost many times as much."""
PATCHES_A_DIMENSION = 16
"""With fewer patches than that, what little noise fell into a direction by chance would be taken for the level."""
QUIETEST = 0.15
"""The share of a grey picture's patches that its level is measured in."""
MID_TONES = (0.2, 0.8)
"""Means of patches from which noise of up to a quarter of the range is seldom cut off at 0 and 1."""
NOT_WHITE = 1.3
"""At half the size, times two, white noise measures 1.00 to 1.15 times what it does at full size, and a camera's noise 1.4 and more."""
NEXT_TO_NOTHING = 1 / 255
"""White noise below this is a picture's own finest texture."""


@dataclass(frozen=True)
class Measured:
    """The levels of white noise that a picture seems to hold: as it is, and at half the size, where the means of four keep half of it.

    Noise that goes over several pixels, as cameras, JPEG and enlarging leave it, has little that is white at full size and more, seen from
    further away (Lebrun, Colom, Morel, "The Noise Clinic", IPOL 2015, measure it at three sizes for that).
    """

    sigma: float
    at_half_size: float

    @property
    def white(self) -> bool:
        return self.sigma >= NEXT_TO_NOTHING and 2 * self.at_half_size <= NOT_WHITE * self.sigma


def measure(pixels: Tensor) -> Measured:
    """What noise there is in a picture (H, W, C), and of what kind."""
    return Measured(estimate_gaussian(pixels), estimate_gaussian(pixels, shrunk=2, most=4000))


def is_grey(pixels: Tensor) -> bool:
    """Whether the channels of a picture (H, W, C) are equal."""
    return all(bool((part == part[..., :1]).all()) for part in (pixels[::8, ::8], pixels))  # the few first: they nearly always tell


def estimate_gaussian(pixels: Tensor, shrunk: int = 1, most: int = 8000) -> float:
    """The standard deviation of white Gaussian noise in a picture (H, W, C), floats in [0, 1] or integers, from the picture alone.

    Chen, Zhu, Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015. Patches of a clean picture lie near a
    plane of few dimensions, so most eigenvalues of the patches' covariance are the noise's variance alone. The largest are taken away
    until those that remain are spread evenly, their mean equal to their median; that mean is the variance.
    Patches are square, in all channels together, at most `most` of them, spread over the picture; it is first shrunk to the means of
    `shrunk` by `shrunk` pixels. Equal channels count as one, of which twice as many patches are taken. A picture of few patches is looked
    at through smaller ones, and one of a single row or column gives 0.
    """
    H, W, C = pixels.shape
    H, W = H // shrunk, W // shrunk
    if min(H, W) < 2:
        return 0.0
    if is_grey(pixels):
        pixels, C = pixels[..., :1], 1
    patch = min(math.isqrt(DIMENSIONS // C), H // 2 + 1, W // 2 + 1)
    while patch > 2 and (H - patch + 1) * (W - patch + 1) < PATCHES_A_DIMENSION * C * patch**2:
        patch -= 1
    windows = pixels.unfold(0, patch * shrunk, shrunk).unfold(1, patch * shrunk, shrunk)  # (h, w, C, patch * shrunk, patch * shrunk)
    stride = max(1, math.ceil(math.sqrt(windows.shape[0] * windows.shape[1] / (2 * most if C == 1 else most))))
    windows = windows[::stride, ::stride]
    parts = [windows[..., y::shrunk, x::shrunk].float() for y in range(shrunk) for x in range(shrunk)]
    one = 1.0 if pixels.is_floating_point() else torch.iinfo(pixels.dtype).max
    rows = sum(parts[1:], parts[0]).reshape(-1, C * patch**2) / (one * len(parts))
    rows = _not_cut_off(rows, C)
    if C == 1:
        rows = _quietest(rows)
    spread = torch.linalg.eigvalsh(_covariance(rows)).clamp_min(0)
    return math.sqrt(_flat_level(spread.tolist())[0])


BLOCK = 8
"""Side of the blocks in which the noise of two shots is measured."""


def block_means(pixels: Tensor) -> Tensor:
    """(H, W, C) -> (H // BLOCK, W // BLOCK, C), the means of blocks."""
    return _blocks(pixels).mean((1, 3))


def _blocks(pixels: Tensor) -> Tensor:
    h, w = pixels.shape[0] // BLOCK, pixels.shape[1] // BLOCK
    return pixels[: h * BLOCK, : w * BLOCK].reshape(h, BLOCK, w, BLOCK, pixels.shape[2])


def at_the_ends(shots: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The deviations that noise has at 0 and at 1, from pairs of shots (H, W, C) of the same.

    A sensor's noise has a variance of a + b * signal (Foi et al., "Practical Poissonian-Gaussian noise modeling", IEEE TIP 2008). Half of
    the squared difference of two shots is that variance, their mean the signal: the line is drawn through the means of blocks in which
    nothing is clipped, each weighted by how sure it is. Without such blocks, both are 0.
    """
    signals, variances = [], []
    for one, other in shots:
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        inside = (_blocks(low).amin((1, 3)) > 0) & (_blocks(high).amax((1, 3)) < 1)
        signals.append(block_means((one + other) / 2)[inside])
        variances.append(block_means((one - other) ** 2 / 2)[inside])
    signal, variance = torch.cat(signals).double(), torch.cat(variances).double()
    if len(signal) < 2:
        return 0.0, 0.0
    at = torch.stack((torch.ones_like(signal), signal), 1)
    fitted = variance.mean().expand_as(variance)
    for _ in range(3):  # a measured variance is as unsure as it is large
        sure = 1 / fitted.clamp_min(1e-3 * variance.mean().item() + 1e-12)
        a, b = torch.linalg.lstsq(at * sure[:, None], variance * sure).solution.tolist()
        fitted = a + b * signal
    return math.sqrt(max(a, 0.0)), math.sqrt(max(a + b, 0.0))


def _covariance(rows: Tensor) -> Tensor:
    rows = rows - rows.mean(0)
    return (rows.T @ rows).double() / len(rows)


def _quietest(rows: Tensor) -> Tensor:
    """Of patches (n, d) the QUIETEST, with the least texture, in the directions that hold the least of the picture.

    In grey, no other channel tells texture from noise; flat patches do (Liu, Tanaka, Okutomi, "Single-Image Noise Level Estimation for
    Blind Denoising", 2013). They are chosen by what they hold in the other directions, so that the noise in these is that of any patch.
    """
    spread, directions = torch.linalg.eigh(_covariance(rows))
    kept = max(_flat_level(spread.clamp_min(0).tolist())[1], rows.shape[1] // 2)
    rows = (rows - rows.mean(0)) @ directions.to(rows)
    count = min(len(rows), max(int(QUIETEST * len(rows)), PATCHES_A_DIMENSION * kept))
    quiet = rows[:, kept:].square().sum(1).topk(count, largest=False).indices
    return rows[quiet, :kept]


def _not_cut_off(rows: Tensor, C: int) -> Tensor:
    """Of patches (n, C * p * p) those of middling tones, if values were cut off at 0 and 1: where they were, there is less noise than was.

    A patch is chosen by its means, in no other direction, so that the noise in all others is that of any patch.
    """
    if ((rows.amin(1) == 0) | (rows.amax(1) == 1)).double().mean() < 0.01:
        return rows
    means = rows.view(len(rows), C, -1).mean(2)
    inside = torch.minimum(means - MID_TONES[0], MID_TONES[1] - means).amin(1)
    enough = min(len(rows), PATCHES_A_DIMENSION * rows.shape[1])
    count = int((inside >= 0).sum())
    return rows[inside.topk(max(count, enough)).indices]


def _flat_level(ascending: list[float]) -> tuple[float, int]:
    """The mean of the smallest values, as many of them as have their mean no greater than their median; and how many."""
    for count in range(len(ascending), 0, -1):
        mean, middle = sum(ascending[:count]) / count, ascending[:count][count // 2]
        if mean <= middle:
            return mean, count
    return ascending[0], 1
