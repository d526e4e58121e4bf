"""`python -m tests.benchmarks.look FOLDER -o sheet.png`: pictures with real noise and no clean version, beside what models make of them.

Each model finds or estimates the noise level by itself. Look for wax, blotches, colour shifts, seams and checkerboards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from core import Denoiser, data, images
from core.choice import choose
from core.sheet import sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("sheet.png"))
    parser.add_argument("--model", type=Path, nargs="+", default=sorted(Path("weights").glob("*.safetensors")))
    parser.add_argument("--sigma", type=float, help="told to every model, in 8-bit steps")
    chosen = parser.parse_args()

    denoisers = [Denoiser.load(path) for path in chosen.model]
    rows = []
    for path in data.find([chosen.folder]):
        noisy = data.pixels(path)
        choice = choose(noisy, [denoiser.name for denoiser in denoisers], denoisers[0].name)
        print(f"{path.name}: {choice.model}, {choice.reason}")
        cells = [(path.name, noisy)]
        for denoiser in denoisers:
            sigma = chosen.sigma / 255 if chosen.sigma is not None else None if denoiser.blind else denoiser.estimate(noisy)
            clean = denoiser(noisy, sigma)
            level = denoiser.found(noisy, clean) if sigma is None else sigma
            cells.append((f"{denoiser.name} {'found' if sigma is None else 'told'} {255 * level:.1f}", clean))
        rows.append(cells)
    chosen.output.write_bytes(images.write(images.Picture(sheet(rows)), "png"))


if __name__ == "__main__":
    main()
