"""The interface at /docs, used in a true browser: nothing may be fetched from another host."""

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Page, sync_playwright
from toys import DEADLINE_SECONDS, encoded, noise, wait_for

from app.main import create_app
from app.settings import Settings

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

pytestmark = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"), reason="no chromium on this machine (with CI set this would fail)"
)


@pytest.fixture
def address(models_dir: Path, tmp_path: Path) -> Iterator[str]:
    """The service on a free port of its own."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = create_app(Settings(models_dir=models_dir, train_dir=tmp_path, device="cpu"))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        wait_for(lambda: server.started, "the service")
        yield "http://{}:{}".format(*listening.getsockname())
        server.should_exit = True
        thread.join(DEADLINE_SECONDS)


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    """A tab that complains of any error in the console and of any request to another host."""
    assert BROWSER is not None, "CI needs a chromium: apt-get install chromium"
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page()
        page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((address, "blob:", "data:")) or complaints.append(request.url),
        )
        yield page
        browser.close()
    assert complaints == []


def test_a_picture_uploaded_by_try_it_out_is_shown_denoised(page, address, tmp_path):
    picture = tmp_path / "cat.png"
    picture.write_bytes(encoded(noise(40, 30)))
    page.goto(f"{address}/docs")
    door = page.locator("#operations-pictures-denoise_denoise_post")
    door.locator(".opblock-summary-control").click()
    door.get_by_role("button", name="Try it out").click()
    door.locator("input[type=file]").set_input_files(picture)
    door.get_by_role("button", name="Execute").click()
    answer = door.locator(".live-responses-table img")
    answer.wait_for(timeout=DEADLINE_SECONDS * 1000)
    assert wait_for(lambda: answer.evaluate("img => img.naturalWidth"), "the picture") == 40
    assert answer.evaluate("img => img.naturalHeight") == 30
    assert "x-clearfold-model: same" in door.locator(".live-responses-table").inner_text()


def test_the_first_page_denoises_a_picture_without_any_script(page, address, tmp_path):
    picture = tmp_path / "cat.png"
    picture.write_bytes(encoded(noise(40, 30)))
    page.goto(address)
    page.get_by_label("Picture").set_input_files(picture)
    page.get_by_role("button", name="Denoise").click()
    page.wait_for_url(f"{address}/denoise")
    assert page.locator("img").evaluate("img => img.naturalWidth") == 40
