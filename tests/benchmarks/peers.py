"""`python -m tests.benchmarks.peers CBSD68/`: seconds a megapixel at 1024x1024, and PSNR at a noise of 25, beside other denoisers.

FFDNet and DnCNN are timed in torch.nn at its best (the fastest of float32, bfloat16 and autocast, channels last) with random weights, which
does not change their time; their PSNR is the published one, on all of CBSD68. BM3D, OpenCV's and scikit-image's non-local means are run and
measured here, on every `--nth` picture, and need `pip install bm3d opencv-python-headless scikit-image`: nothing else of the project does.
OpenCV's takes 8-bit pictures, so what it is given is clipped and rounded. Both have the strength that does best on the first picture.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from core import hardware, metrics
from core.denoiser import Denoiser
from core.evaluation import Pictures
from tests.benchmarks.engine import KNOWN, laid_out

SIDE, SIGMA = 1024, 25.0

Denoise = Callable[[Tensor], Tensor]
"""(H, W, 3) floats with a noise of SIGMA -> the denoised picture."""


PEERS = ("ffdnet", "dncnn", "opencv", "scikit-image", "bm3d")


class Peer(NamedTuple):
    name: str
    run: Denoise
    rounds: int
    published: float | None = None
    """PSNR at SIGMA on all of CBSD68, by the paper."""
    trained: bool = True
    """Its weights, if it has any, mean something: PSNR is measured here."""


def clearfold(path: Path) -> Peer:
    denoiser = Denoiser.load(path, "cpu")
    return Peer(f"Clearfold {denoiser.name}", lambda pixels: denoiser(pixels, SIGMA / 255), 9)


def ffdnet() -> nn.Module:
    """For colour (Zhang, Zuo & Zhang 2018): half resolution, 12 layers of 96 channels, a map of the noise level beside the pixels."""
    inner = [layer for _ in range(10) for layer in (nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(inplace=True))]
    return nn.Sequential(
        nn.Conv2d(15, 96, 3, padding=1), nn.ReLU(inplace=True), *inner, nn.Conv2d(96, 12, 3, padding=1), nn.PixelShuffle(2)
    )


def dncnn() -> nn.Module:
    """CDnCNN-B (Zhang et al. 2017): 20 layers of 64 channels at full resolution, batch normalisation folded into the convolutions."""
    return nn.Sequential(*_plain(3, 64, 3, layers=20))


def _plain(C: int, inner: int, F: int, layers: int) -> list[nn.Module]:
    sides = itertools.pairwise([C, *[inner] * (layers - 1), F])
    return [layer for c, f in sides for layer in (nn.Conv2d(c, f, 3, padding=1), nn.ReLU(inplace=True))][:-1]


def in_torch(network: nn.Module, kind: str, unshuffle: bool) -> Denoise:
    """The network as `engine.Torch` runs its own: "fp32", "fp32 channels last", "bf16" or "autocast"."""
    network = network.eval() if kind == "fp32" else network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = network.bfloat16() if kind == "bf16" else network

    def run(noisy: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            x = noisy.permute(2, 0, 1)[None]
            if unshuffle:
                x = nn.functional.pixel_unshuffle(x, 2)
                x = torch.cat((x, torch.full((1, 3, *x.shape[2:]), SIGMA / 255)), 1)
            x = laid_out(x, kind)
            y = network(x.bfloat16() if kind == "bf16" else x)
        y = y.float()[0].permute(1, 2, 0)
        return y if unshuffle else noisy - y

    return run


def at_best(name: str, make: Callable[[], nn.Module], unshuffle: bool, published: float, noisy: Tensor) -> Peer:
    ways = {kind: in_torch(make(), kind, unshuffle) for kind in ("fp32", "fp32 channels last", "bf16", "autocast")}
    took = {kind: min(seconds(run, noisy) for _ in range(2)) for kind, run in ways.items()}
    best = min(took, key=lambda kind: took[kind])
    return Peer(f"{name}, torch.nn, {best}", ways[best], 5, published, trained=False)


def bm3d() -> Denoise:
    module = installed("bm3d")
    return lambda noisy: torch.from_numpy(module.bm3d_rgb(noisy.numpy(), SIGMA / 255)).float()


def opencv(strength: float) -> Denoise:
    module = installed("cv2", "opencv-python-headless")
    module.setNumThreads(torch.get_num_threads())

    def run(noisy: Tensor) -> Tensor:
        clean = module.fastNlMeansDenoisingColored(metrics.to_8bit(noisy).mul(255).byte().numpy(), None, strength, strength, 7, 21)
        return torch.from_numpy(clean).float() / 255

    return run


def scikit(strength: float) -> Denoise:
    module = installed("skimage.restoration", "scikit-image")
    return lambda noisy: torch.from_numpy(
        module.denoise_nl_means(
            noisy.numpy(), patch_size=5, patch_distance=6, h=strength * SIGMA / 255, sigma=SIGMA / 255, fast_mode=True, channel_axis=-1
        )
    ).float()


def installed(name: str, package: str | None = None) -> Any:
    try:
        found: ModuleType = importlib.import_module(name)
    except ImportError:
        raise SystemExit(f"{package or name} is not installed: pip install bm3d opencv-python-headless scikit-image") from None
    return found


def psnr(run: Denoise, pictures: Pictures, numbers: Sequence[int]) -> float:
    pairs = (pictures.pair(i, SIGMA) for i in numbers)
    return statistics.mean(metrics.psnr(metrics.to_8bit(run(pair.noisy)), pair.clean) for pair in pairs)


def strongest(make: Callable[[float], Denoise], strengths: Sequence[float], pictures: Pictures) -> Denoise:
    """With the strength that does best on the first picture."""
    return max((make(strength) for strength in strengths), key=lambda run: psnr(run, pictures, [0]))


def seconds(run: Denoise, noisy: Tensor) -> float:
    started = time.perf_counter()
    run(noisy)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="CBSD68")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--nth", type=int, default=17, help="measure PSNR on the first of each so many pictures")
    parser.add_argument("--only", nargs="*", default=PEERS, choices=PEERS, metavar="PEER", help="some of: " + ", ".join(PEERS))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    hardware.keep_freed_memory()
    pictures = Pictures(chosen.folder)
    some = range(0, len(pictures), chosen.nth)
    g = torch.Generator().manual_seed(0)
    noisy = (torch.rand(SIDE, SIDE, 3, generator=g) + SIGMA / 255 * torch.randn(SIDE, SIDE, 3, generator=g)).contiguous()

    peers = [clearfold(path) for path in KNOWN if path.exists()]
    if "ffdnet" in chosen.only:
        peers.append(at_best("FFDNet", ffdnet, True, 31.21, noisy))
    if "dncnn" in chosen.only:
        peers.append(at_best("CDnCNN-B", dncnn, False, 31.23, noisy))
    if "opencv" in chosen.only:
        peers.append(Peer("non-local means, OpenCV", strongest(opencv, (10, 15, 20, 25, 30), pictures), 3))
    if "scikit-image" in chosen.only:
        peers.append(Peer("non-local means, scikit-image", strongest(scikit, (0.4, 0.6, 0.8, 1.0), pictures), 3))
    if "bm3d" in chosen.only:
        peers.append(Peer("BM3D", bm3d(), 1, 30.71))

    table = Table(
        "",
        "seconds a megapixel",
        f"of {peers[0].name}'s",
        f"PSNR, {len(some)} pictures",
        "PSNR, published",
        title=f"{chosen.threads} threads",
    )
    found: dict[str, dict[str, float | None]] = {}
    for peer in peers:
        if peer.rounds > 1:
            peer.run(noisy)
        told = statistics.median(seconds(peer.run, noisy) for _ in range(peer.rounds)) / (SIDE * SIDE / 1e6)
        measured = psnr(peer.run, pictures, some) if peer.trained else None
        found[peer.name] = {"seconds_a_megapixel": round(told, 4), "psnr": measured and round(measured, 3), "published": peer.published}
        own = next(iter(found.values()))["seconds_a_megapixel"] or 1
        row = f"{told:.3f}", f"{told / own:.1f}", f"{measured:.2f}" if measured else "–", f"{peer.published:.2f}" if peer.published else "–"
        table.add_row(peer.name, *row)
    if chosen.json:
        print(json.dumps(found))
        return
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
