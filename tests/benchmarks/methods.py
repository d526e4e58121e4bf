"""`python -m tests.benchmarks.methods DIR ...`: what each training method makes of noise put on photographs, on other photographs with it.

Every method gets the same pictures, the same network to start from, and the same number of steps. What is measured is the model as it is
served: the noise level is not told. "targets" is Noise2Noise with the truth in place of the second shot: what could be had at best.

A long run may be had in pieces: with `--folder` and `--minutes` it stops in time, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from app.training import GENTLE
from core import Denoiser, Picture, data, images, metrics, trainer, weights

SIDE = 448
"""Of a picture, at most: 0.2 megapixel."""


def gaussian(clean: Tensor, g: torch.Generator) -> Tensor:
    """White, sigma 25."""
    return clean + 25 / 255 * torch.randn(clean.shape, generator=g)


def poisson(clean: Tensor, g: torch.Generator) -> Tensor:
    """At most 30 photons a pixel and channel, as a microscope sees in the dark."""
    return torch.poisson(clean * 30, generator=g) / 30


def stripes(clean: Tensor, g: torch.Generator) -> Tensor:
    """Such photons, and every row of the sensor off by sigma 10: what no shipped model has seen."""
    return poisson(clean, g) + 10 / 255 * torch.randn(clean.shape[0], 1, 1, generator=g)


def blotches(clean: Tensor, g: torch.Generator) -> Tensor:
    """Gaussian noise smeared over two pixels and more: correlated in both directions, against what Neighbor2Neighbor assumes."""
    noise = 60 / 255 * torch.randn(clean.shape, generator=g)
    for axis in (0, 1):
        noise = (noise.roll(1, axis) + 2 * noise + noise.roll(-1, axis)) / 4
    return clean + noise


NOISES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {f.__name__: f for f in (gaussian, poisson, stripes, blotches)}


def save(path: Path, pixels: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.write(Picture(pixels.clamp(0, 1))))


def folders(root: Path, clean: list[Tensor], put_on: Callable[[Tensor, torch.Generator], Tensor]) -> dict[str, Path]:
    """Each method's uploads, of the same scenes and first shots."""
    for i, pixels in enumerate(clean):
        shots = [put_on(pixels, data.generator_of(shot, i)) for shot in (1, 2)]
        save(root / "noisy" / f"{i:03}.png", shots[0])
        for shot, noisy in enumerate(shots, 1):
            save(root / "pairs" / f"{i:03}_{shot}.png", noisy)
        save(root / "targets" / "noisy" / f"{i:03}.png", shots[0])
        save(root / "targets" / "clean" / f"{i:03}.png", pixels)
    return {name: root / name for name in ("targets", "pairs", "noisy")}


def score(denoise: Callable[[Tensor], Tensor], clean: list[Tensor], put_on: Callable[[Tensor, torch.Generator], Tensor]) -> float:
    """Mean PSNR in dB on other pictures, as 8-bit files have them."""
    total = 0.0
    for i, pixels in enumerate(clean):
        noisy = metrics.to_8bit(put_on(pixels, data.generator_of(3, i)))
        total += metrics.psnr(metrics.to_8bit(denoise(noisy)), pixels)
    return total / len(clean)


def ended(recipe: trainer.Recipe) -> bool:
    return str(weights.load(recipe.out)[1]["recipe"]["steps"]).startswith(f"{recipe.steps} ")


def trained(recipe: trainer.Recipe, deadline: float) -> float:
    """Trains until the last step or the deadline; the seconds it took so far."""
    spent = recipe.out.with_suffix(".seconds")
    before, began = float(spent.read_text()) if spent.exists() else 0.0, time.monotonic()
    if not (recipe.out.exists() and ended(recipe)):
        trainer.train(recipe, stop=lambda: time.monotonic() > deadline, resume=recipe.checkpoint.exists())
    seconds = before + time.monotonic() - began
    spent.write_text(str(seconds))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs="+")
    parser.add_argument("--noise", choices=[*NOISES], default="stripes")
    parser.add_argument("--parent", type=Path, help="Weights to start from; none: from scratch.")
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--others", type=int, default=8, help="Pictures to measure on.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument(
        "--contrast",
        type=float,
        default=1.0,
        help="Of the photographs, about a middle grey. At 0.4 no noise of sigma 25 is clipped to 0 or 255, which would move the mean that "
        "noisy targets teach.",
    )
    parser.add_argument("--methods", nargs="+", default=["targets", "pairs", "noisy"])
    parser.add_argument("--lr", type=float)
    parser.add_argument("--folder", type=Path, help="Where to keep what was trained, to go on from it.")
    parser.add_argument("--minutes", type=float, default=math.inf, help="At most, for all methods together.")
    parser.add_argument("--json", action="store_true")
    wishes = parser.parse_args()
    put_on = NOISES[wishes.noise]
    paths = data.find(wishes.photographs)
    paths = paths[:: max(1, len(paths) // (wishes.pictures + wishes.others))][: wishes.pictures + wishes.others]
    clean = [0.5 + wishes.contrast * (data.pixels(path)[:SIDE, :SIDE] - 0.5) for path in paths]
    others, clean = clean[: wishes.others], clean[wishes.others :]
    rows = [{"model": "noisy", "psnr": score(lambda noisy: noisy, others, put_on)}]
    if wishes.parent is not None:
        rows.append({"model": f"parent {wishes.parent.stem}", "psnr": score(Denoiser.load(wishes.parent), others, put_on)})
    tell = print if not wishes.json else lambda *_, **__: None
    for row in rows:
        tell(f"{row['model']:<20} {row['psnr']:6.2f} dB", flush=True)
    deadline = time.monotonic() + 60 * wishes.minutes
    with tempfile.TemporaryDirectory() as temporary:
        root = wishes.folder or Path(temporary)
        laid = folders(root, clean, put_on)
        for name in wishes.methods:
            plain = trainer.Recipe(data=(laid[name],), out=root / f"{name}.safetensors", method="noisy" if name == "noisy" else "pairs")
            rate = wishes.lr or plain.lr * (1.0 if wishes.parent is None else GENTLE[plain.method])
            recipe = trainer.Recipe(
                data=plain.data,
                out=plain.out,
                method=plain.method,
                steps=wishes.steps,
                batch=wishes.batch,
                patch=wishes.patch,
                lr=rate,
                warm_up=min(plain.warm_up, wishes.steps // 10),
                initial=wishes.parent,
                evaluate_every=wishes.steps,
                checkpoint_seconds=math.inf,
            )
            seconds = trained(recipe, deadline)
            card = weights.load(recipe.out)[1]
            if not ended(recipe):
                tell(f"{name:<20} {card['recipe']['steps']} steps: the same command goes on", flush=True)
                break
            rows.append({"model": name, "psnr": score(Denoiser.load(recipe.out), others, put_on), "seconds": seconds, **card["quality"]})
            told = ", ".join(f"{who} {card['quality'][who]}" for who in ("before", "parent", "trained"))
            tell(f"{name:<20} {rows[-1]['psnr']:6.2f} dB  {seconds:5.0f} s  by itself: {told}; {card['note']}", flush=True)
    if wishes.json:
        print(json.dumps({"noise": wishes.noise, "steps": wishes.steps, "batch": wishes.batch, "patch": wishes.patch, "rows": rows}))


if __name__ == "__main__":
    main()
