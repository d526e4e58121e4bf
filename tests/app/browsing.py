"""A true browser for the tests of the pages, and the service that it talks to. Tests nothing."""

import base64
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from toys import DEADLINE_SECONDS, decoded, wait_for

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
EXPECTED = (
    "Failed to load resource: the server responded with a status of 4",  # what a console says of any answer 4xx
    "Failed to load resource: net::ERR_INTERNET_DISCONNECTED",
    "This document requires 'TrustedHTML' assignment",  # a TypeError comes with it
)
SHIFTS = """
window.shifted = 0;
new PerformanceObserver((list) => { for (const e of list.getEntries()) if (!e.hadRecentInput) window.shifted += e.value; })
  .observe({type: "layout-shift", buffered: true});
"""

needs_browser = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"), reason="no chromium on this machine (with CI set this would fail)"
)
expect.set_options(timeout=DEADLINE_SECONDS * 1000 / 3)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of `app`, on a free port of its own."""
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            wait_for(lambda: server.started, "the service")
            yield "http://{}:{}".format(*listening.getsockname())
        finally:  # else a test that fails would leave the thread, and pytest would wait for it at its end
            server.should_exit = True
            thread.join(DEADLINE_SECONDS)


@contextmanager
def launched() -> Iterator[Browser]:
    assert BROWSER is not None, "CI needs a chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


Tabs = Callable[..., Page]


@contextmanager
def tabs(browser: Browser, address: str) -> Iterator[Tabs]:
    """Opens tabs that complain, at the end, of any error in the console, any request to another host and any shift of the layout."""
    complaints: list[str] = []
    contexts = []

    def open_tab(**options: object) -> Page:
        contexts.append(context := browser.new_context(**options))
        context.set_default_timeout(DEADLINE_SECONDS * 1000 / 3)
        page = context.new_page()
        page.add_init_script(SHIFTS)
        page.on("console", lambda said: said.type == "error" and not said.text.startswith(EXPECTED) and complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith((address, "blob:", "data:")) or complaints.append(request.url))
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert complaints == []


def shoot(page: Page, name: str) -> None:
    """A picture of the state for somebody to look at, where CLEARFOLD_SCREENSHOTS names a folder."""
    if folder := os.environ.get("CLEARFOLD_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def drop(page: Page, onto: str, *paths: Path) -> None:
    """Drags files and folders of the disk over an element and lets go of them there, as the browser's own events do."""
    box = page.locator(onto).bounding_box()
    assert box is not None
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    carried = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    mouse = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        mouse.send("Input.dispatchDragEvent", {"type": kind, **at, "data": carried})


def shown(page: Page, canvas: str = "canvas.picture") -> Image.Image:
    """What a canvas shows, once it is drawn and no tile is on its way."""
    two_frames = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
    last, now = "", " "
    while last != now:
        page.evaluate(two_frames)
        last, now = now, page.evaluate("(canvas) => document.querySelector(canvas).toDataURL()", canvas)
    return decoded(base64.b64decode(now.partition(",")[2])).convert("RGB")


def accessible(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
