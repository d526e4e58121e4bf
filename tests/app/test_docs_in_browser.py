"""The interface at /docs, used in a true browser: nothing may be fetched from another host."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import Tabs, needs_browser, served
from playwright.sync_api import Page
from toys import DEADLINE_SECONDS, encoded, noise, wait_for

from app.main import create_app
from app.settings import Settings

pytestmark = needs_browser


@pytest.fixture
def address(models_dir: Path, tmp_path: Path) -> Iterator[str]:
    with served(create_app(Settings(models_dir=models_dir, train_dir=tmp_path, device="cpu"))) as address:
        yield address


@pytest.fixture
def page(open_tab: Tabs) -> Page:
    return open_tab()


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
