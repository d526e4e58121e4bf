"""`python -m tests.benchmarks.page`: what the page weighs, how soon it is there, and whether a picture of 24 megapixels freezes the tab.

Needs chromium and `pip install '.[test]'`. Starts the service itself, with the shipped weights.
"""

import asyncio
import io
import re
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image
from playwright.async_api import Page, async_playwright, expect

from app.main import WEB, create_app
from app.settings import Settings

WIDTH, HEIGHT = 6000, 4000
DEADLINE_MS = 300_000
WATCH = """
window.longest = 0; window.shifted = 0; window.frozen = 0;
new PerformanceObserver((list) => { for (const e of list.getEntries()) window.longest = Math.max(window.longest, e.duration); })
  .observe({type: "longtask", buffered: true});
new PerformanceObserver((list) => { for (const e of list.getEntries()) if (!e.hadRecentInput) window.shifted += e.value; })
  .observe({type: "layout-shift", buffered: true});
let last = performance.now();
setInterval(() => { const now = performance.now(); window.frozen = Math.max(window.frozen, now - last - 20); last = now; }, 20);
"""


def photograph() -> bytes:
    """A JPEG of 24 megapixels: soft shapes, and noise of about 10 steps."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    waves = np.stack([120 + 60 * np.sin(x / (300 + 40 * c)) * np.cos(y / (220 + 30 * c)) for c in range(3)], 2)
    grain = np.random.default_rng(0).normal(0, 10, (HEIGHT, WIDTH, 3)).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray((waves + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


async def watch(page: Page, what: str) -> None:
    longest, frozen = await page.evaluate("() => [window.longest, window.frozen]")
    await page.evaluate("() => { window.longest = window.frozen = 0; }")
    print(f"{what:44} longest task {longest:5.0f} ms, longest without an answer {frozen:5.0f} ms")


async def look(address: str, picture: bytes) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = await browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(DEADLINE_MS)
        expect.set_options(timeout=DEADLINE_MS)
        await page.add_init_script(WATCH)
        for visit in ("first visit", "second visit"):
            await page.goto(address, wait_until="networkidle")
            paints = await page.evaluate("() => performance.getEntriesByType('paint').map((e) => [e.name, e.startTime])")
            print(f"{visit + ': first contentful paint':44} {dict(paints)['first-contentful-paint']:5.0f} ms")
        await watch(page, "the page by itself")
        hint = page.locator(".hint")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "large.jpg"
            file.write_bytes(picture)
            began = time.perf_counter()
            await page.locator(".desk input[type=file]:not([capture])").set_input_files(file)
            await expect(page.locator(".percent")).to_be_enabled()
            print(f"{'shown after':44} {time.perf_counter() - began:5.1f} s")
            await expect(hint).to_contain_text("Preview of what is seen")
            print(f"{'preview of what is seen after':44} {time.perf_counter() - began:5.1f} s")
            await watch(page, "opening 24 megapixels, preview")
            for strength in ("0.9", "1.1", "1"):
                began = time.perf_counter()
                async with page.expect_response(re.compile(f"strength={strength}&")):
                    await page.get_by_label("Strength", exact=True).first.fill(strength)
                await expect(hint).to_contain_text("Preview of what is seen")
                print(f"{'the next preview, a slider moved':44} {time.perf_counter() - began:5.2f} s")
            await watch(page, "three more previews")
            await page.locator(".stage").focus()
            for key in ["0", "+", "+", "ArrowLeft", "ArrowUp", "z", "ArrowRight", "-", "4", "1", "3", "2"]:
                await page.keyboard.press(key)
                await page.evaluate("() => new Promise(requestAnimationFrame)")
            await watch(page, "zooming, moving, all views")
            began = time.perf_counter()
            await page.get_by_role("button", name="Denoise whole picture").click()
            await expect(page.locator(".film li")).to_have_attribute("data-state", "done")
            print(f"{'denoised whole after':44} {time.perf_counter() - began:5.1f} s")
            await page.keyboard.press("0")
            await page.keyboard.press("4")
            await expect(hint).to_be_hidden()
            await watch(page, "denoising, and its difference")
        print(f"{'layout shift in all':44} {await page.evaluate('() => window.shifted'):.4f}")
        await browser.close()


def main() -> None:
    sizes = [file.stat().st_size for file in WEB.rglob("*") if file.suffix in (".js", ".css") and "docs" not in file.parts]
    print(f"{'script and style':44} {sum(sizes) / 1000:5.1f} kB in {len(sizes)} files")
    with socket.socket(proto=socket.IPPROTO_TCP) as listening, tempfile.TemporaryDirectory() as folder:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(Settings(train_dir=Path(folder))), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.05)
        try:
            asyncio.run(look("http://{}:{}".format(*listening.getsockname()), photograph()))
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
