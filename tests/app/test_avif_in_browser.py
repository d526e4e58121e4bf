"""A large AVIF, put together from cells, is to a true browser what it is to Pillow."""

import base64
import io

import numpy as np
import pytest
import torch
from browsing import needs_browser
from PIL import Image
from playwright.sync_api import Browser
from toys import decoded

from core import Picture, avif, images

pytestmark = needs_browser

DRAWN = """
async (address) => {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), {width: image.naturalWidth, height: image.naturalHeight});
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}
"""


def test_a_browser_shows_every_cell_and_its_transparency(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avif, "MAX_STILL_PIXELS", 64 * 64)
    monkeypatch.setattr(avif, "CELL_SIDE", 64)
    samples = torch.randint(256, (131, 150, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clear = torch.full((131, 150), 255, dtype=torch.uint8)
    clear[40:90, 30:80] = 0
    data = images.write(Picture(samples, clear), "avif")
    page = browser.new_page()
    drawn = page.evaluate(DRAWN, "data:image/avif;base64," + base64.b64encode(data).decode())
    page.close()
    seen = np.asarray(decoded(base64.b64decode(drawn.partition(",")[2])))
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(seen[..., 3], expected[..., 3])
    opaque = expected[..., 3] == 255
    assert np.array_equal(seen[opaque], expected[opaque])
