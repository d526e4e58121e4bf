"""`python -m tests.benchmarks.before_after PICTURE`: puts noise of sigma 25 on a picture and writes it beside what the model makes of it.

README's picture was made so from "Chelsea" of scikit-image (`skimage/data/chelsea.png`, CC0).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from core import Denoiser, data, images, metrics, noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model", type=Path, default=Path("weights/gaussian.safetensors"))
    parser.add_argument("--sigma", type=float, default=25.0, help="in 8-bit steps")
    chosen = parser.parse_args()

    denoiser = Denoiser.load(chosen.model)
    picture = images.read(chosen.picture.read_bytes())
    noisy = metrics.to_8bit(noise.add_gaussian(picture.pixels, chosen.sigma / 255, data.generator_of(0, 0)))
    level = denoiser.estimate(noisy)
    clean = denoiser(noisy, level)
    both = picture.with_pixels(torch.cat((noisy, clean), 1))
    out = chosen.model.with_suffix(".jpg")
    out.write_bytes(images.write(both, "jpeg", 90))
    before, after = (metrics.psnr(metrics.to_8bit(pixels), picture.pixels) for pixels in (noisy, clean))
    print(f"{out}: {before:.2f} dB before, {after:.2f} dB after; noise estimated as {level * 255:.2f}")


if __name__ == "__main__":
    main()
