"""`python -m tests.benchmarks.screenshots PHOTO PHOTO ...`: the README's pictures of the page, with the shipped weights.

The first photograph is denoised, the others are trained from; the first gets white noise, the others photons' and stripes. Name photographs
that everybody may show. Needs chromium and `pip install '.[test]'`.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from torch import Tensor

from core import data, images
from tests.benchmarks.methods import gaussian, stripes
from tests.benchmarks.service import serving

Noise = Callable[[Tensor, torch.Generator], Tensor]
BESIDE = Path(__file__).parents[1] / "app"
SIDE = 560
"""Of the pictures that are trained from: like a camera's crops."""


def noisy(path: Path, longest: int, put_on: Noise) -> bytes:
    """A PNG of the photograph, shrunk to `longest` pixels, with noise."""
    photo = Image.open(path).convert("RGB")
    photo.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8).view(photo.height, photo.width, 3) / 255
    return images.write(images.Picture(put_on(pixels, data.generator_of(0, 0)).clamp(0, 1), format="png"))


def sent(paths: list[Path], longest: int, put_on: Noise) -> list[dict[str, object]]:
    return [{"name": f"{path.stem}.png", "mimeType": "image/png", "buffer": noisy(path, longest, put_on)} for path in paths]


def shoot(page: Page, name: str) -> None:
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(BESIDE / f"{name}.jpg", quality=88, optimize=True)
    print(f"{BESIDE / name}.jpg is written")


@contextmanager
def opened(address: str, height: int) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1120, "height": height})
        page.set_default_timeout(60_000)
        page.goto(address)
        yield page
        browser.close()


def denoised(address: str, photo: Path) -> None:
    with opened(address, 680) as page:
        page.locator(".desk input[type=file]:not([capture])").set_input_files(sent([photo], 1200, gaussian))  # type: ignore[arg-type]
        page.get_by_role("button", name="Denoise whole picture").click()
        expect(page.get_by_role("button", name="Download", exact=True)).to_be_enabled()
        page.wait_for_timeout(1000)
        shoot(page, "page")


def trained(address: str, photos: list[Path], steps: int) -> None:
    with opened(f"{address}/#train", 860) as page:
        page.locator(".make input[type=file]").first.set_input_files(sent(photos, SIDE, stripes))  # type: ignore[arg-type]
        page.get_by_label("Name").fill("my-camera")
        page.get_by_text("More choices").click()
        page.get_by_label("Steps", exact=True).fill(str(steps))
        page.get_by_role("button", name="Start training", exact=True).click()
        expect(page.locator(".job h2 .pill")).to_have_text("done")
        expect(page.locator(".panels img")).to_have_count(3)
        page.wait_for_timeout(1000)
        shoot(page, "train")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("photos", nargs="+", type=Path)
    asked.add_argument("--steps", type=int, default=200)
    chosen = asked.parse_args()
    expect.set_options(timeout=900_000)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "log", train_dir=folder) as service:
        denoised(service.address, chosen.photos[0])
        trained(service.address, chosen.photos[1:], chosen.steps)


if __name__ == "__main__":
    main()
