"""The page, used in a true browser as a person would use it: by mouse, by keyboard, with good files and bad ones."""

import base64
import json
import os
import re
import shlex
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import cast

import httpx
import pytest
import torch
from browsing import Tabs, accessible, button, drop, needs_browser, served, shoot, shown, tabs
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Locator, Page, Route, expect
from toys import DEADLINE_SECONDS, Gate, Toy, decoded, encoded, wait_for

from app.main import WEB, create_app
from app.models import Models
from app.settings import Settings
from core import Denoiser
from tests.core.made import photo

pytestmark = needs_browser

WIDTH, HEIGHT = 300, 200
SECRET = "secret-of-the-page-0123456789"
MOST_BYTES = 150_000
"""Of script and style together."""


def noisy(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> bytes:
    added = torch.randn(height, width, 3, generator=torch.Generator().manual_seed(seed)) * 20 / 255
    values = (photo(height, width, seed) + added).clamp(0, 1).mul(255).round().to(torch.uint8)
    return encoded(Image.frombytes("RGB", (width, height), values.numpy().tobytes()))


CAT, DOG = noisy(), noisy(seed=1)


class Service:
    """The service behind the page: the shipped model, and one that waits at a gate until it is opened."""

    def __init__(self, address: str, gates: list[Gate]) -> None:
        self.address, self._gates = address, gates

    def gate(self) -> Gate:
        """A new gate, at which the next picture stops."""
        self._gates.append(Gate())
        return self._gates[-1]

    def denoise(self, data: bytes, **query: object) -> bytes:
        return httpx.post(f"{self.address}/denoise", params=query, content=data).raise_for_status().content


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    gates = [Gate()]
    settings = Settings(
        train_dir=tmp_path_factory.mktemp("page"), device="cpu", workers=1, max_queued_pictures=0, max_kept_bytes=2 * 3 * WIDTH * HEIGHT
    )
    gated = cast(Denoiser, Toy(lambda *given: gates[-1](*given), name="gated"))
    with served(create_app(settings, lambda settings: Models(settings, *Models.load(settings), gated))) as address:
        yield Service(address, gates)


@pytest.fixture
def address(service: Service) -> str:
    return service.address


@pytest.fixture
def page(open_tab: Tabs, service: Service) -> Page:
    page = open_tab(viewport={"width": 1100, "height": 700})
    page.goto(service.address)
    return page


def choose(page: Page, *files: tuple[str, bytes]) -> None:
    chosen = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files]
    page.locator(".desk input[type=file]:not([capture])").set_input_files(chosen)  # type: ignore[arg-type]


def hint(page: Page) -> Locator:
    return page.locator(".hint")


def previewed(page: Page) -> None:
    expect(hint(page)).to_have_text(re.compile("^Preview of what is seen"))


def frames(page: Page, state: str) -> Locator:
    return page.locator(f".film li[data-state={state}]")


def whole(page: Page) -> None:
    """Denoises the current picture whole."""
    done = frames(page, "done").count()
    button(page, "Denoise whole picture").click()
    expect(frames(page, "done")).to_have_count(done + 1)
    expect(hint(page)).to_be_hidden()


def picture(page: Page, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """The part of the canvas where a picture of this size lies at 100 %."""
    canvas = shown(page)
    left, top = (canvas.width - width + 1) // 2, (canvas.height - height + 1) // 2
    return canvas.crop((left, top, left + width, top + height))


def farthest(a: Image.Image, b: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(a, b.convert("RGB")).getextrema())


class Held:
    """Requests that wait until they are let go; those that come after go on by themselves."""

    def __init__(self, page: Page, url: str | Callable[[str], bool]) -> None:
        self.routes: list[Route] = []
        self._page, self._open = page, False
        page.route(url, self._take)

    def _take(self, route: Route) -> None:
        if self._open:
            route.continue_()
        else:
            self.routes.append(route)

    def wait(self, count: int = 1) -> None:
        wait_for(lambda: self._page.evaluate("1") and len(self.routes) >= count, "what is asked for")

    def let_go(self) -> None:
        self._open = True
        for route in self.routes:
            route.continue_()


# Ways in


def test_a_chosen_picture_is_previewed_at_once_and_denoised_whole_on_demand(page: Page, service: Service) -> None:
    shoot(page, "denoise-empty")
    choose(page, ("cat.png", CAT))
    previewed(page)
    shoot(page, "denoise-preview")
    page.keyboard.press("1")
    assert farthest(picture(page), decoded(CAT)) == 0
    page.keyboard.press("3")
    answer = decoded(service.denoise(CAT))
    preview = picture(page)
    assert farthest(preview, decoded(CAT)) > 20
    assert farthest(preview, answer) <= 1  # to rounding
    whole(page)
    assert farthest(picture(page), answer) == 0
    shoot(page, "denoise-done")
    facts = page.locator(".facts").inner_text()
    assert re.search(
        r"Noise level\s*σ \d\d\.\d\d\s*Model\s*gaussian-fine"
        r"\s*Because\s*white noise: [\d.]+ of 255 [\w ,.]+\s*Device\s*cpu\s*Time\s*[\d.]+ m?s",
        facts,
    )
    assert page.evaluate("() => window.shifted") < 0.01


TRANSFER = """(files) => {
  const transfer = new DataTransfer();
  for (const [name, data] of files) {
    transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, {type: "image/png"}));
  }
  return transfer;
}"""


def transfer(page: Page, *files: tuple[str, bytes]):  # type: ignore[no-untyped-def]
    return page.evaluate_handle(TRANSFER, [[name, base64.b64encode(data).decode()] for name, data in files])


def test_pictures_are_dropped_anywhere(page: Page) -> None:
    carried = {"dataTransfer": transfer(page, ("cat.png", CAT), ("dog.png", DOG))}
    page.dispatch_event("header", "dragenter", carried)
    expect(page.locator("body.dropping")).to_be_visible()
    shoot(page, "denoise-dropping")
    page.dispatch_event("header", "drop", carried)
    expect(page.locator("body.dropping")).to_have_count(0)
    expect(page.locator(".film li")).to_have_count(2)
    previewed(page)


def test_a_dropped_folders_pictures_are_taken(page: Page, tmp_path: Path) -> None:
    (tmp_path / "pets" / "dogs").mkdir(parents=True)
    (tmp_path / "pets" / "cat.png").write_bytes(CAT)
    (tmp_path / "pets" / "dogs" / "dog.png").write_bytes(DOG)
    (tmp_path / "pets" / ".hidden").write_bytes(b"")
    drop(page, "main", tmp_path / "pets")
    expect(page.locator(".film .name")).to_have_text(["cat.png", "dog.png"])
    previewed(page)


def test_a_picture_is_pasted(page: Page) -> None:
    page.evaluate(
        "(transfer) => document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true}))",
        transfer(page, ("image.png", CAT)),
    )
    expect(page.locator(".film li")).to_have_count(1)
    previewed(page)


def test_a_phone_offers_its_camera(open_tab: Tabs, service: Service) -> None:
    page = open_tab(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.goto(service.address)
    with page.expect_file_chooser() as chooser:
        button(page, "Take a photo").tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files({"name": "photo.png", "mimeType": "image/png", "buffer": CAT})
    previewed(page)
    shoot(page, "denoise-phone")


def test_without_any_script_a_form_still_denoises(open_tab: Tabs, service: Service) -> None:
    page = open_tab(java_script_enabled=False)
    page.goto(service.address)
    page.get_by_label("Picture").set_input_files({"name": "cat.png", "mimeType": "image/png", "buffer": CAT})
    button(page, "Denoise").click()
    page.wait_for_url(f"{service.address}/denoise")
    assert page.locator("img").count() == 1


def test_a_file_that_no_part_takes_does_not_take_the_pages_place(page: Page, service: Service, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(CAT)
    page.evaluate("""() => {
      window.taken = [];
      for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => taken.push(event.defaultPrevented));
    }""")
    for part in ("models", "train/nowhere"):
        page.goto(f"{service.address}/#{part}")
        expect(page.locator(".sheet:visible")).to_have_count(1)
        page.evaluate("() => { taken.length = 0; }")
        drop(page, "main", tmp_path / "cat.png")
        wait_for(lambda: page.evaluate("() => taken.length"), "the drop")
        assert page.evaluate("() => taken.every(Boolean)")
        assert len(page.context.pages) == 1
    page.get_by_role("link", name="Denoise").click()
    drop(page, "main", tmp_path / "cat.png")
    previewed(page)


@pytest.mark.parametrize("script", ["", "throw new Error('at its start');"])
def test_where_no_worker_starts_the_page_does_without(page: Page, service: Service, script: str) -> None:
    answer = {"body": script, "content_type": "text/javascript"} if script else {"status": 404}
    page.route("**/pictures.worker.js", lambda route: route.fulfill(**answer))  # type: ignore[arg-type]
    page.reload()
    choose(page, ("cat.png", CAT), ("dog.tif", encoded(decoded(DOG), "tiff")))
    previewed(page)
    wait_for(lambda: all(drawn(page)), "the thumbnails")
    button(page, "Denoise all 2").click()
    expect(frames(page, "done")).to_have_count(2)
    page.keyboard.press("3")
    assert farthest(picture(page), decoded(service.denoise(CAT))) == 0
    page.keyboard.press("4")
    shown(page)
    page.keyboard.press("]")
    page.keyboard.press("1")
    expect(hint(page)).to_be_hidden()
    wait_for(lambda: farthest(picture(page), decoded(DOG)) == 0, "the other picture")
    with page.expect_download() as download:
        button(page, "All as zip (2)").click()
    with zipfile.ZipFile(download.value.path()) as packed:
        assert packed.testzip() is None


def test_a_page_that_came_without_a_part_says_so(page: Page) -> None:
    page.route(re.compile(r"/(pictures\.worker|pixels)\.js$"), lambda route: route.fulfill(status=404))
    page.reload()
    asked: list[str] = []
    page.on("request", lambda request: "/denoise" in request.url and asked.append(request.url))
    choose(page, ("cat.png", CAT))
    expect(page.get_by_role("alert")).to_contain_text("A part of this page did not load")
    assert asked == []  # the service cannot help


# Looking


def test_the_line_is_moved_by_keyboard_and_shows_before_on_its_left_and_after_on_its_right(page: Page) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    line = page.get_by_role("slider", name="Line between before and after")
    line.focus()
    expect(line).to_have_attribute("aria-valuenow", "50")
    halves = picture(page)
    page.keyboard.press("3")
    after = picture(page)
    page.keyboard.press("1")
    before = picture(page)
    left, right = (0, 0, WIDTH // 2 - 2, HEIGHT), (WIDTH // 2 + 2, 0, WIDTH, HEIGHT)
    assert farthest(halves.crop(left), before.crop(left)) == 0
    assert farthest(halves.crop(right), after.crop(right)) == 0
    page.keyboard.press("2")
    line.focus()
    page.keyboard.press("ArrowLeft")
    expect(line).to_have_attribute("aria-valuenow", "49")
    page.keyboard.press("PageUp")
    expect(line).to_have_attribute("aria-valuenow", "59")
    page.keyboard.press("Home")
    expect(line).to_have_attribute("aria-valuetext", "0 % before, 100 % after")
    assert farthest(picture(page), after) == 0
    page.keyboard.press("End")
    assert farthest(picture(page), before) == 0


def test_the_line_is_dragged(page: Page) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    box = page.locator(".handle").bounding_box()
    assert box is not None
    page.mouse.move(box["x"], box["y"] + 300)
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 300)
    page.mouse.up()
    stage = page.locator(".stage").bounding_box()
    assert stage is not None
    expect(page.locator(".handle")).to_have_attribute("aria-valuenow", str(round(50 + 100 * 100 / stage["width"])))


def test_the_original_is_shown_while_a_key_is_held(page: Page) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    page.keyboard.press("3")
    after = picture(page)
    page.keyboard.down("o")
    assert farthest(picture(page), decoded(CAT)) == 0
    page.keyboard.up("o")
    assert farthest(picture(page), after) == 0


def test_what_was_removed_is_the_difference_around_grey(page: Page, service: Service) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    page.keyboard.press("4")
    tag = page.locator(".tag.right")
    expect(tag).to_have_text("What was removed, 2× as strong")
    of_preview = picture(page)
    whole(page)
    of_whole = picture(page)
    shoot(page, "denoise-removed")
    before, after = decoded(CAT).convert("RGB"), decoded(service.denoise(CAT)).convert("RGB")
    expected = ImageChops.subtract(before, after, 0.5, 128)
    assert farthest(of_whole, expected) <= 1
    assert farthest(of_preview, expected) <= 2


def test_it_zooms_and_moves_and_shows_pixels_as_squares(page: Page) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    expect(page.locator(".tag.right")).to_have_text("After")
    percent = page.locator(".percent")
    page.locator(".stage").focus()
    page.keyboard.press("1")
    for _ in range(4):
        page.keyboard.press("+")
    expect(percent).to_have_text("400 %")
    canvas = shown(page)
    shoot(page, "denoise-zoomed")
    middle = (canvas.width + 1) // 2, (canvas.height + 1) // 2
    original = decoded(CAT).convert("RGB")
    for dx, dy in [(0, 0), (5, 3), (-7, 9)]:
        expected = original.getpixel((WIDTH // 2 + dx, HEIGHT // 2 + dy))
        for inside in [(0, 0), (3, 0), (0, 3), (3, 3)]:
            assert canvas.getpixel((middle[0] + 4 * dx + inside[0], middle[1] + 4 * dy + inside[1])) == expected
    page.keyboard.press("ArrowRight")
    assert farthest(shown(page), canvas) > 20
    page.keyboard.press("0")
    page.keyboard.press("z")
    expect(percent).to_have_text("100 %")
    assert farthest(picture(page), original) == 0
    box = page.locator(".stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.wheel(0, -300)
    expect(percent).not_to_have_text("100 %")


def test_a_picture_larger_than_the_window_opens_on_its_noisiest_flat_patch(page: Page) -> None:
    width, height = 2400, 1600
    grey = Image.new("RGB", (width, height), (128, 128, 128))
    edges = Image.effect_mandelbrot((width, height), (-2, -1.2, 0.6, 1.2), 60).convert("RGB")
    grey.paste(edges.crop((0, 0, 1500, height)), (0, 0))
    grain = 128 + 8 * torch.randn(400, 400, 3, generator=torch.Generator().manual_seed(2))
    grey.paste(Image.frombytes("RGB", (400, 400), grain.round().to(torch.uint8).numpy().tobytes()), (1900, 1100))
    choose(page, ("large.png", encoded(grey)))
    expect(hint(page)).to_have_text(re.compile("Preview of what is seen|Zoom in"))
    page.keyboard.press("1")
    canvas = shown(page)
    middle = canvas.crop((canvas.width // 2 - 5, canvas.height // 2 - 5, canvas.width // 2 + 5, canvas.height // 2 + 5))
    assert len(middle.getcolors() or []) > 20
    expect(page.locator(".percent")).to_have_text("100 %")


def test_the_keys_for_zoom_act_wherever_nothing_is_typed_and_their_button_says_how_large_it_is(page: Page) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    assert page.evaluate("() => document.activeElement === document.body")
    page.keyboard.press("+")
    page.keyboard.press("+")
    expect(button(page, "Zoom, 200 %: show it pixel by pixel")).to_be_visible()
    page.get_by_label("Strength", exact=True).first.focus()
    page.keyboard.press("-")
    expect(page.locator(".percent")).to_have_text("141 %")
    page.keyboard.press("z")
    expect(page.locator(".percent")).to_have_text("100 %")
    page.locator(".stage").focus()
    page.keyboard.press("+")
    expect(page.locator(".percent")).to_have_text("141 %")  # once, not by the stage and by the page


def test_two_fingers_zoom_and_one_moves(open_tab: Tabs, service: Service) -> None:
    page = open_tab(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.goto(service.address)
    choose(page, ("cat.png", CAT))
    previewed(page)
    page.keyboard.press("1")
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[int, int]) -> None:
        at = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    touch("touchStart", (160, 300), (200, 300))
    for apart in (40, 60, 80):
        touch("touchMove", (180 - apart, 300), (180 + apart, 300))
    touch("touchEnd")
    expect(page.locator(".percent")).to_have_text(re.compile(r"^([3-4]\d\d) %$"))
    zoomed = shown(page)
    touch("touchStart", (180, 300))
    touch("touchMove", (120, 260))
    touch("touchEnd")
    moved = shown(page)
    assert farthest(zoomed.crop((60, 40, 360, 300)), moved.crop((0, 0, 300, 260))) == 0


# Settings


def test_the_noise_level_is_measured_shown_and_edited(page: Page) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    number = page.get_by_label("Noise level, σ in 8-bit steps")
    measured = float(number.input_value())
    assert 15 < measured < 25
    number.fill("40")
    number.press("Enter")
    expect(page.get_by_label("Measure it")).not_to_be_checked()
    expect(page).to_have_url(re.compile("sigma=40"))
    previewed(page)
    page.get_by_label("Measure it").check()
    expect(page).not_to_have_url(re.compile("sigma"))
    expect(number).to_have_value(str(measured))


def test_moving_a_slider_previews_the_part_that_is_seen(page: Page, service: Service) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    page.keyboard.press("3")
    with page.expect_request(re.compile("strength=2&.*crop=")) as asked:
        page.get_by_label("Strength", exact=True).first.fill("2")
    response = asked.value.response()
    assert response is not None
    assert response.ok
    previewed(page)
    wait_for(lambda: farthest(picture(page), decoded(service.denoise(CAT, strength=2))) <= 1, "the preview")
    button(page, "Gentle").click()
    expect(button(page, "Gentle")).to_have_attribute("aria-pressed", "true")
    expect(page).to_have_url(re.compile("strength=0.6"))


def test_the_address_changes_once_a_slider_rests(page: Page) -> None:
    """Browsers refuse an address that changes more often than about ten times a second: Safari by an error, Chromium in silence."""
    page.evaluate("""() => {
      window.changes = 0;
      const replace = history.replaceState;
      history.replaceState = function (...given) { window.changes++; return replace.apply(this, given); };
      const slider = document.querySelector("#strength");
      for (let i = 0; i <= 300; i++) { slider.value = i / 200; slider.dispatchEvent(new Event("input")); }
    }""")
    expect(page).to_have_url(re.compile(r"strength=1\.5$"))
    assert page.evaluate("() => window.changes") == 1


def test_an_address_that_names_what_every_object_has_chooses_nothing(page: Page, service: Service) -> None:
    page.goto(f"{service.address}/?metadata=toString&format=constructor#constructor")
    expect(page.locator(".desk")).to_be_visible()
    expect(page.get_by_label("Metadata")).to_have_value("keep")
    expect(page.get_by_label("Format")).to_have_value("")


def test_a_number_that_is_being_typed_stays_when_an_answer_comes(page: Page) -> None:
    previews = Held(page, "**/denoise?*")
    choose(page, ("cat.png", CAT))
    previews.wait()
    number = page.get_by_label("Noise level, σ in 8-bit steps")
    number.click()
    page.keyboard.type("4")
    previews.let_go()
    previewed(page)
    expect(number).to_have_value("4")
    page.keyboard.type("0")
    number.press("Enter")
    expect(page).to_have_url(re.compile("sigma=40"))


def test_a_level_that_was_set_by_hand_is_never_called_measured(page: Page, service: Service) -> None:
    page.goto(f"{service.address}/?sigma=40")
    choose(page, ("cat.png", CAT))
    previewed(page)
    held = Held(page, "**/denoise?*")
    page.get_by_label("Measure it").check()
    expect(page.locator("#auto-word")).to_have_text("in each picture")
    expect(page.get_by_label("Noise level, σ in 8-bit steps")).to_have_value("")
    held.let_go()


def test_the_file_is_sent_once_for_many_previews_and_again_when_the_service_has_let_go_of_it(page: Page, service: Service) -> None:
    sent: list[bool] = []  # with the file in it?
    page.on("request", lambda request: "/denoise?" in request.url and sent.append("x-clearfold-kept" not in request.headers))
    choose(page, ("cat.png", CAT))
    previewed(page)
    page.keyboard.press("3")
    strength = page.get_by_label("Strength", exact=True).first
    for value in ("0.5", "1.5"):
        with page.expect_response(re.compile(f"strength={value}&")):
            strength.fill(value)
    previewed(page)
    assert sent == [True, False, False]
    assert farthest(picture(page), decoded(service.denoise(CAT, strength=1.5))) <= 1
    whole(page)
    assert sent == [True, False, False, False]
    assert farthest(picture(page), decoded(service.denoise(CAT, strength=1.5))) == 0
    for seed in (2, 3):  # others' pictures, for which there is no room besides
        httpx.post(f"{service.address}/denoise", params={"keep": True, "strength": 0}, content=noisy(seed=seed)).raise_for_status()
    del sent[:]
    with page.expect_response(re.compile("strength=2&")) as gone:
        strength.fill("2")
    assert gone.value.status == 404
    previewed(page)
    assert sent == [False, True]
    assert farthest(picture(page), decoded(service.denoise(CAT, strength=2))) <= 1


def test_the_settings_live_in_the_address_and_in_the_command_for_curl(page: Page, service: Service, tmp_path: Path) -> None:
    page.goto(f"{service.address}/?sigma=12.5&strength=0.7&model=gaussian&format=webp&quality=80&metadata=safe&nonsense=1")
    page.get_by_text("File", exact=True).first.click()
    page.get_by_text("The same with curl").click()
    for label, value in [
        ("Noise level", "12.5"),
        ("Strength", "0.7"),
        ("Model", "gaussian"),
        ("Format", "webp"),
        ("Quality", "80"),
        ("Metadata", "safe"),
    ]:
        expect(page.get_by_label(label, exact=True).first).to_have_value(value)
    choose(page, ("it's a; cat.png", CAT))
    previewed(page)
    page.evaluate("() => navigator.clipboard.writeText = (words) => { window.copied = words; }")
    button(page, "Copy").click()
    expect(button(page, "Copied")).to_be_visible()
    command = shlex.split(page.evaluate("() => window.copied"))
    assert command == shlex.split(page.locator(".curl pre").inner_text())
    assert command[:2] == ["curl", "-F"]
    assert command[2] == 'file=@"it\'s a; cat.png"'
    assert command[4:] == ["-o", "it's a; cat-denoised.webp"]
    whole(page)
    with page.expect_download() as download:
        button(page, "Download").click()
    assert download.value.suggested_filename == "it's a; cat-denoised.webp"
    by_curl = httpx.post(command[3], files={"file": ("cat.png", CAT)}).content
    assert Path(download.value.path()).read_bytes() == by_curl
    assert decoded(by_curl).format == "WEBP"
    shoot(page, "denoise-settings")


def test_what_no_browser_shows_is_shown_all_the_same_and_comes_back_in_its_format(page: Page, service: Service) -> None:
    choose(page, ("cat.tif", encoded(decoded(CAT), "tiff")))
    previewed(page)
    page.keyboard.press("1")
    assert farthest(picture(page), decoded(CAT)) == 0
    whole(page)
    page.keyboard.press("3")
    assert farthest(picture(page), decoded(service.denoise(CAT))) == 0
    with page.expect_download() as download:
        button(page, "Download").click()
    assert download.value.suggested_filename == "cat-denoised.tif"
    assert decoded(Path(download.value.path()).read_bytes()).format == "TIFF"


def test_what_a_format_cannot_keep_is_told(page: Page, service: Service) -> None:
    exif = Image.Exif()
    exif[0x010E] = "A cat"
    file = BytesIO()
    decoded(CAT).save(file, "png", exif=exif)
    page.goto(f"{service.address}/?format=bmp")
    choose(page, ("cat.png", file.getvalue()))
    previewed(page)
    whole(page)
    expect(page.locator(".facts")).to_contain_text("exif (bmp holds none)")


# Several


def test_several_pictures_are_denoised_each_with_its_state_and_saved_as_a_zip(page: Page, service: Service) -> None:
    choose(page, ("cat.png", CAT), ("dog.png", DOG), ("cat.png", DOG))
    previewed(page)
    button(page, "Denoise all 3").click()
    expect(frames(page, "done")).to_have_count(3)
    shoot(page, "denoise-several")
    with page.expect_download() as download:
        button(page, "All as zip (3)").click()
    assert download.value.suggested_filename == "clearfold.zip"
    with zipfile.ZipFile(download.value.path()) as packed:
        assert packed.testzip() is None
        assert packed.namelist() == ["cat-denoised.png", "dog-denoised.png", "cat-denoised-2.png"]
        assert packed.read("dog-denoised.png") == service.denoise(DOG) == packed.read("cat-denoised-2.png")
    page.keyboard.press("]")
    expect(page.locator(".frame").nth(1)).to_have_attribute("aria-current", "true")
    measured = float(httpx.post(f"{service.address}/denoise", content=DOG).headers["X-Clearfold-Sigma"])
    expect(page.get_by_label("Noise level, σ in 8-bit steps")).to_have_value(f"{measured:g}")
    button(page, "Take dog.png out").click()
    expect(page.locator(".film li")).to_have_count(2)
    assert page.evaluate("() => window.shifted") < 0.01


def test_pictures_that_no_browser_shows_wait_for_a_busy_service_and_are_shown(page: Page, service: Service) -> None:
    gate = service.gate()
    tiffs = [(f"{seed}.tif", encoded(decoded(noisy(seed=seed)), "tiff")) for seed in range(3)]
    refused: list[str] = []
    page.on("response", lambda response: response.status == 429 and refused.append(response.url))
    with ThreadPoolExecutor(1) as others, ExitStack() as at_last:
        at_last.callback(gate.opened.set)
        others.submit(service.denoise, CAT, model="gated", sigma=10)
        assert gate.began.wait(DEADLINE_SECONDS)  # there is no room for another picture
        choose(page, *tiffs)
        expect(hint(page)).to_have_text(re.compile("^The service is busy; the preview comes in"))
        wait_for(lambda: page.evaluate("1") and len(refused) >= len(tiffs), "a refusal of each")
        expect(frames(page, "ready")).to_have_count(3)
        shoot(page, "denoise-not-shown-yet")
    previewed(page)
    page.keyboard.press("]")
    page.keyboard.press("]")
    previewed(page)
    page.keyboard.press("1")
    assert farthest(picture(page), decoded(noisy(seed=2))) == 0
    wait_for(lambda: all(drawn(page)), "the thumbnails")
    expect(frames(page, "ready")).to_have_count(3)


DRAWN = """() => [...document.querySelectorAll(".frame canvas")].map(
  (canvas) => canvas.getContext("2d").getImageData(50, 50, 1, 1).data[3] > 0,
)"""


def drawn(page: Page) -> list[bool]:
    """Which pictures of the film have their thumbnail."""
    return page.evaluate(DRAWN)


def test_a_picture_that_could_not_be_shown_is_asked_for_again_when_it_is_chosen(page: Page, service: Service) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    page.context.set_offline(True)
    choose(page, ("cat.tif", encoded(decoded(CAT), "tiff")), ("dog.tif", encoded(decoded(DOG), "tiff")))
    expect(frames(page, "failed")).to_have_count(2)
    page.context.set_offline(False)
    page.keyboard.press("]")
    previewed(page)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(frames(page, "failed")).to_have_count(1)
    page.keyboard.press("1")
    assert farthest(picture(page), decoded(DOG)) == 0
    wait_for(lambda: drawn(page) == [True, False, True], "its thumbnail")


WAITING = """
window.asked = [];
window.thumbnails = new Set(); // that are being made
window.Worker = class extends Worker {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", ({data}) => thumbnails.delete(data.call));
  }
  postMessage(message, ...more) {
    asked.push(message.name);
    if (message.name === "thumbnail") thumbnails.add(message.call);
    window.most = Math.max(window.most ?? 0, thumbnails.size);
    super.postMessage(message, ...more);
  }
};
"""


def test_the_picture_that_is_looked_at_does_not_wait_for_the_thumbnails_of_all(page: Page) -> None:
    page.add_init_script(WAITING)
    page.reload()
    choose(page, *[(f"{seed}.png", noisy(seed=seed)) for seed in range(6)])
    previewed(page)
    wait_for(lambda: all(drawn(page)), "the thumbnails")
    assert page.evaluate("() => asked[0]") == "open"
    assert page.evaluate("() => most") == 1


KEPT = """
window.kept = 0; // pictures that the worker holds
const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (message, ...more) {
  window.kept += { open: 1, close: -1 }[message.name] ?? 0;
  return post.call(this, message, ...more);
};
"""


def test_a_picture_chosen_twice_while_it_is_read_is_held_once(page: Page, service: Service) -> None:
    page.add_init_script(KEPT)
    page.goto(service.address)
    choose(page, ("cat.png", CAT), ("dog.png", DOG))
    previewed(page)
    with page.expect_response(re.compile("crop=")):
        page.evaluate("() => { const [cat, dog] = document.querySelectorAll('.frame'); for (const each of [dog, cat, dog]) each.click(); }")
    previewed(page)
    wait_for(lambda: page.evaluate("() => window.kept") == 1, "the worker to hold nothing but what is shown")
    page.keyboard.press("1")
    assert farthest(picture(page), decoded(DOG)) == 0


def test_a_wrong_file_is_told_in_the_services_words_and_never_as_html(page: Page, service: Service) -> None:
    name = "<img src=x onerror=document.body.remove()>.png"
    choose(page, (name, b"no picture at all"), ("cat.png", CAT))
    expect(frames(page, "failed")).to_have_count(1)
    alert = page.get_by_role("alert")
    told = httpx.post(f"{service.address}/denoise", content=b"no picture at all").json()
    expect(alert).to_contain_text(told["title"])
    expect(alert).to_contain_text(told["detail"])
    expect(page.locator(".frame .name").first).to_have_text(name)
    shoot(page, "denoise-wrong-file")
    page.locator(".frame").nth(1).click()
    expect(alert).to_be_hidden()
    previewed(page)


def test_a_busy_service_is_asked_again_and_a_cancelled_picture_is_given_up(page: Page, service: Service) -> None:
    gate = service.gate()
    page.goto(f"{service.address}/?model=gated&sigma=10")
    choose(page, ("cat.png", CAT), ("dog.png", DOG))
    assert gate.began.wait(DEADLINE_SECONDS)  # the preview
    button(page, "Denoise all 2").click()
    expect(frames(page, "busy").first).to_contain_text("service busy")
    expect(page.locator(".over progress")).to_be_visible()
    shoot(page, "denoise-busy")
    gate.opened.set()
    expect(frames(page, "done")).to_have_count(2)

    gate = service.gate()
    page.get_by_label("Noise level, σ in 8-bit steps").fill("20")
    page.get_by_label("Noise level, σ in 8-bit steps").press("Enter")
    assert gate.began.wait(DEADLINE_SECONDS)
    button(page, "Denoise whole picture").click()
    shoot(page, "denoise-working")
    button(page, "Cancel").click()
    expect(button(page, "Denoise whole picture")).to_be_enabled()
    page.get_by_label("Model").select_option("gaussian")  # a preview that is no longer wanted is given up too
    assert gate.stopped.wait(DEADLINE_SECONDS)
    previewed(page)


def test_a_picture_that_waits_for_others_is_given_up_at_once(page: Page) -> None:
    whole_ones = Held(page, lambda url: "/denoise?" in url and "crop=" not in url)
    choose(page, *[(f"{seed}.png", noisy(seed=seed)) for seed in range(4)])
    previewed(page)
    button(page, "Denoise all 4").click()
    expect(frames(page, "waiting")).to_have_count(2)
    page.locator(".frame").nth(3).click()
    button(page, "Cancel").click()
    expect(frames(page, "ready")).to_have_count(1)
    button(page, "Denoise whole picture").click()  # and is third in a queue of its own
    whole_ones.wait(3)
    whole_ones.let_go()
    expect(frames(page, "done")).to_have_count(4)


def test_a_key_that_is_held_down_denoises_once(page: Page) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    held = Held(page, "**/denoise?*")
    page.keyboard.down("Enter")
    page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    expect(button(page, "Cancel")).to_be_visible()
    held.let_go()


def test_a_file_that_was_changed_after_it_was_chosen_is_told(browser: Browser, service: Service, tmp_path: Path) -> None:
    context = browser.new_context()  # of its own: the console names what this is about as an error
    try:
        page = context.new_page()
        page.goto(service.address)
        files = [tmp_path / "cat.png", tmp_path / "dog.png"]
        for file in files:
            file.write_bytes(CAT)
        page.locator(".desk input[type=file]:not([capture])").set_input_files(files)
        previewed(page)
        wait_for(lambda: all(drawn(page)), "the thumbnails")
        files[1].write_bytes(DOG)
        os.utime(files[1], (1, 1))
        button(page, "Denoise all 2").click()
        expect(frames(page, "failed")).to_have_count(1)
        page.locator(".frame").nth(1).click()
        expect(page.get_by_role("alert")).to_contain_text("dog.png was changed, moved or deleted after it was chosen")
    finally:
        context.close()


def test_a_problem_is_read_out_once(page: Page) -> None:
    choose(page, ("words.txt", b"no picture"))
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.locator(".frame .state")).to_have_text("failed")
    page.evaluate("""() => {
      window.told = 0;
      new MutationObserver((all) => { told += all.length; }).observe(document.querySelector(".over .problem"), {childList: true});
    }""")
    page.get_by_label("Strength", exact=True).first.fill("0.4")
    button(page, "Strong").click()
    assert page.evaluate("() => told") == 0


def test_a_service_that_is_gone_is_told_in_words(page: Page, service: Service) -> None:
    choose(page, ("cat.png", CAT))
    previewed(page)
    page.context.set_offline(True)
    button(page, "Denoise whole picture").click()
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached")
    page.context.set_offline(False)
    whole(page)


def test_a_key_is_asked_for_and_kept_in_memory_only(browser: Browser, tmp_path: Path) -> None:
    app = create_app(Settings(train_dir=tmp_path, device="cpu", api_keys=f"{SECRET}:denoise"))
    with served(app) as address, tabs(browser, address) as open_tab:
        page = open_tab()
        page.goto(address)
        choose(page, ("cat.png", CAT))
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()
        shoot(page, "denoise-key")
        accessible(page)
        page.get_by_label("Key", exact=True).fill("a-key-that-nobody-knows")
        button(page, "Use it").click()
        expect(dialog).to_contain_text("The service did not take this key.")
        page.get_by_label("Key", exact=True).fill(SECRET)
        button(page, "Use it").click()
        previewed(page)
        whole(page)
        kept = page.evaluate("() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert SECRET not in kept
        page.get_by_text("The same with curl").click()
        expect(page.locator(".curl pre")).to_contain_text('-H "Authorization: Bearer $CLEARFOLD_API_KEY"')


def test_every_picture_that_waits_for_a_key_goes_on_once_it_is_given(browser: Browser, tmp_path: Path) -> None:
    app = create_app(Settings(train_dir=tmp_path, device="cpu", api_keys=f"{SECRET}:denoise"))
    with served(app) as address, tabs(browser, address) as open_tab:
        page = open_tab()
        page.goto(address)
        choose(page, *[(f"{seed}.tif", encoded(decoded(noisy(seed=seed)), "tiff")) for seed in range(3)])
        expect(frames(page, "failed")).to_have_count(3)
        page.get_by_label("Key", exact=True).fill(SECRET)
        button(page, "Use it").click()
        expect(page.get_by_role("dialog")).to_be_hidden()
        previewed(page)
        expect(frames(page, "ready")).to_have_count(3)
        wait_for(lambda: all(drawn(page)), "the thumbnails")


@contextmanager
def locked(browser: Browser, folder: Path) -> Iterator[Page]:
    """A page of a service that asks for a key."""
    app = create_app(Settings(train_dir=folder, device="cpu", api_keys=f"{SECRET}:denoise+train"))
    with served(app) as address, tabs(browser, address) as open_tab:
        page = open_tab()
        page.goto(address)
        yield page


def give(page: Page, key: str) -> None:
    """By the button, unasked."""
    button(page, "API key").click()
    page.get_by_label("Key", exact=True).fill(key)
    button(page, "Use it").click()


@pytest.mark.parametrize("key", [SECRET, "a-key-that-nobody-knows"])
def test_what_was_refused_before_there_was_a_key_is_asked_again_with_it(browser: Browser, tmp_path: Path, key: str) -> None:
    with locked(browser, tmp_path) as page:
        early = Held(page, "**/denoise?*")
        choose(page, ("cat.png", CAT))
        early.wait()
        give(page, key)
        early.let_go()
        if key == SECRET:
            previewed(page)
            expect(page.get_by_role("dialog")).to_be_hidden()
        else:
            expect(page.get_by_role("dialog", name="API key")).to_contain_text("The service did not take this key.")


def test_models_that_were_refused_before_there_was_a_key_are_asked_for_again_with_it(browser: Browser, tmp_path: Path) -> None:
    with locked(browser, tmp_path) as page:
        early = Held(page, "**/models")
        page.get_by_role("link", name="Models").click()
        early.wait()
        give(page, SECRET)
        early.let_go()
        expect(page.locator(".models > li")).not_to_have_count(0)
        expect(page.get_by_role("dialog")).to_be_hidden()


def test_a_key_that_is_given_later_opens_what_was_refused(browser: Browser, tmp_path: Path) -> None:
    with locked(browser, tmp_path) as page:
        choose(page, ("cat.png", CAT), ("dog.tif", encoded(decoded(DOG), "tiff")))
        expect(frames(page, "failed")).to_have_count(2)
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        page.get_by_role("link", name="Models").click()
        expect(page.get_by_role("dialog", name="API key")).to_be_visible()
        page.keyboard.press("Escape")
        give(page, SECRET)
        expect(page.locator(".models > li")).not_to_have_count(0)
        expect(page.get_by_role("alert")).to_be_hidden()
        page.get_by_role("link", name="Denoise").click()
        previewed(page)
        expect(frames(page, "ready")).to_have_count(2)


def test_a_dialog_closes_by_a_press_outside_and_by_none_that_began_inside(page: Page) -> None:
    button(page, "API key").click()
    dialog = page.get_by_role("dialog", name="API key")
    box = dialog.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 4, box["y"] + box["height"] - 4)  # its rim
    page.get_by_label("Key", exact=True).fill("a-key")
    page.get_by_label("Key", exact=True).hover()
    page.mouse.down()
    page.mouse.move(4, 4)  # as who selects it all
    page.mouse.up()
    expect(dialog).to_be_visible()
    page.mouse.click(4, 4)
    expect(dialog).to_be_hidden()


def test_train_and_its_models_are_there_once_a_key_is_given(browser: Browser, tmp_path: Path) -> None:
    app = create_app(Settings(train_dir=tmp_path, device="cpu", api_keys=f"{SECRET}:train+denoise"))
    with served(app) as address, tabs(browser, address) as open_tab:
        page = open_tab()
        page.goto(f"{address}/#train")
        expect(page.get_by_role("dialog", name="API key")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("alert")).to_be_visible()
        button(page, "API key").click()
        page.get_by_label("Key", exact=True).fill(SECRET)
        button(page, "Use it").click()
        expect(page.get_by_label("Start from")).to_contain_text("gaussian")
        expect(page.get_by_text("None yet.")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_hidden()


# Other parts


def test_a_picture_is_denoised_anew_after_another_model_was_chosen_for_all(browser: Browser, tmp_path: Path) -> None:
    settings = Settings(models_dir=tmp_path / "models", train_dir=tmp_path / "train", device="cpu")
    toys = [cast(Denoiser, Toy(name="plain")), cast(Denoiser, Toy(lambda pixels, *_: pixels / 2, name="dark"))]
    with served(create_app(settings, lambda settings: Models(settings, *toys))) as address, tabs(browser, address) as open_tab:
        page = open_tab()
        page.goto(address)
        choose(page, ("cat.png", CAT))
        previewed(page)
        whole(page)
        page.keyboard.press("3")
        assert farthest(picture(page), decoded(CAT)) == 0
        page.get_by_role("link", name="Models").click()
        button(page, "Use it: dark").click()
        expect(page.locator(".models > li").filter(has_text="dark").first).to_contain_text("in use")
        page.get_by_role("link", name="Denoise").click()
        expect(page.locator(".frame .state")).to_have_text("settings changed")
        previewed(page)
        dark = decoded(CAT).convert("RGB").point(lambda value: value / 2)
        assert farthest(picture(page), dark) <= 1
        button(page, "Denoise whole picture").click()
        expect(page.locator(".facts")).to_contain_text("dark")
        expect(hint(page)).to_be_hidden()
        assert farthest(picture(page), dark) <= 1
        page.get_by_role("link", name="Models").click()
        button(page, "Let the picture decide again").click()
        expect(button(page, "Use it: dark")).to_be_visible()
        page.get_by_role("link", name="Denoise").click()
        expect(button(page, "Denoise whole picture")).to_be_enabled()


class Jobs:
    """The service's list of trainings, played: two on the first page, two on the one after it."""

    def __init__(self, page: Page) -> None:
        self.status = dict.fromkeys("abcd", "done")
        self.asked: list[str] = []
        self.fails = False
        page.clock.install()
        page.route("**/train?*", self._answer)

    def _answer(self, route: Route) -> None:
        self.asked.append(route.request.url)
        if self.fails:
            return route.abort("internetdisconnected")
        ids, more = ("cd", None) if "before" in self.asked[-1] else ("ab", "/train?limit=20&before=b")
        jobs = [
            {"id": id, "model": f"model-{id}", "status": self.status[id], "method": "noisy", "created": "2026-01-02T03:04:05Z"}
            for id in ids
        ]
        return route.fulfill(json={"jobs": jobs, "next": more})


def statuses(page: Page, *words: str) -> None:
    expect(page.locator(".jobs .pill")).to_have_text(list(words))


def test_the_list_of_trainings_goes_on_and_leaves_the_focus_where_it_is(page: Page, service: Service) -> None:
    jobs = Jobs(page)
    jobs.status["b"] = "queued"
    page.goto(f"{service.address}/#train")
    statuses(page, "done", "waiting for its turn")
    link = page.locator(".jobs a").nth(1)
    link.focus()
    jobs.status["b"] = "running"
    page.clock.run_for(5000)
    statuses(page, "done", "training")
    expect(link).to_be_focused()
    jobs.status["b"] = "done"
    page.clock.run_for(5000)
    statuses(page, "done", "done")
    expect(link).to_be_focused()
    asked = len(jobs.asked)
    page.clock.run_for(60_000)
    assert len(jobs.asked) == asked  # nothing goes on


def test_older_trainings_stay_and_are_kept_up_to_date(page: Page, service: Service) -> None:
    jobs = Jobs(page)
    jobs.status |= {"a": "running", "d": "failed"}
    page.goto(f"{service.address}/#train")
    button(page, "Older ones").focus()
    page.keyboard.press("Enter")
    statuses(page, "training", "done", "done", "failed")
    expect(page.locator(".jobs a").nth(2)).to_be_focused()
    expect(button(page, "Older ones")).to_be_hidden()
    shoot(page, "train-list")
    jobs.status["d"] = "running"
    page.clock.run_for(5000)
    statuses(page, "training", "done", "done", "training")
    jobs.status["a"] = "done"
    page.clock.run_for(5000)
    statuses(page, "done", "done", "done", "training")
    jobs.status["d"] = "done"
    page.clock.run_for(5000)
    statuses(page, "done", "done", "done", "done")
    expect(page.locator(".jobs a").nth(2)).to_be_focused()


def test_the_list_of_trainings_comes_back_after_the_service_was_away(page: Page, service: Service) -> None:
    jobs = Jobs(page)
    jobs.status["a"] = "running"
    page.goto(f"{service.address}/#train")
    statuses(page, "training", "done")
    jobs.fails = True
    page.clock.run_for(5000)
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached")
    statuses(page, "training", "done")
    jobs.fails = False
    jobs.status["a"] = "done"
    page.clock.run_for(5000)
    statuses(page, "done", "done")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_focus_goes_with_whoever_follows_a_training_and_comes_back(page: Page, service: Service) -> None:
    Jobs(page)
    page.goto(f"{service.address}/#train")
    statuses(page, "done", "done")
    page.locator(".jobs a").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".job h2")).to_be_focused()
    page.get_by_role("link", name="All trainings").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Trainings")).to_be_focused()


def test_a_weights_file_that_was_refused_can_be_chosen_again(page: Page, service: Service) -> None:
    page.goto(f"{service.address}/#models")
    chooser = page.locator(".sheet input[accept='.safetensors']")
    chooser.set_input_files({"name": "mine.safetensors", "mimeType": "application/octet-stream", "buffer": b"no weights"})
    expect(page.get_by_role("alert")).to_be_visible()
    assert chooser.evaluate("(input) => input.files.length") == 0  # or else choosing it again would be no change


# For everybody


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [(360, 740), (2560, 1440)])
def test_everybody_can_use_it_in_any_theme_and_size(open_tab: Tabs, service: Service, theme: str, size: tuple[int, int]) -> None:
    page = open_tab(viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce")
    page.goto(service.address)
    expect(page.locator(".empty")).to_be_visible()
    shoot(page, f"denoise-empty-{theme}-{size[0]}")
    accessible(page)
    choose(page, ("cat.png", CAT), ("words.txt", b"no picture"))
    previewed(page)
    page.get_by_text("File", exact=True).first.click()
    page.get_by_text("The same with curl").click()
    shoot(page, f"denoise-{theme}-{size[0]}")
    accessible(page)
    page.locator(".frame").nth(1).click()
    expect(page.get_by_role("alert")).to_be_visible()
    accessible(page)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    shoot(page, f"keys-{theme}-{size[0]}")
    accessible(page)
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]


def test_the_first_words_hide_no_setting_at_four_times_the_size(open_tab: Tabs, service: Service) -> None:
    page = open_tab(viewport={"width": 320, "height": 256})
    page.goto(service.address)
    words, panel = page.locator(".empty").bounding_box(), page.locator(".panel").bounding_box()
    assert words is not None
    assert panel is not None
    assert words["y"] + words["height"] <= panel["y"]


def test_a_keyboard_is_enough(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("() => document.activeElement.textContent") == "Choose pictures":
                page.keyboard.press("Enter")
                break
    chooser.value.set_files({"name": "cat.png", "mimeType": "image/png", "buffer": CAT})
    previewed(page)
    page.keyboard.press("Enter")
    expect(frames(page, "done")).to_have_count(1)
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement === document.body"):  # once around
            break
        outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        seen.append(page.evaluate("() => document.activeElement.textContent || document.activeElement.getAttribute('aria-label')"))
        assert outline != "none" or "Line between" in str(seen[-1])  # the line's knob has it
    assert any("Download" in str(each) for each in seen)


def test_script_and_style_are_small() -> None:
    sizes = {file.name: file.stat().st_size for file in WEB.rglob("*") if file.suffix in (".js", ".css") and "docs" not in file.parts}
    assert sum(sizes.values()) <= MOST_BYTES, json.dumps(sizes)


def test_the_browser_lets_no_script_in_that_is_not_the_pages_own(page: Page) -> None:
    page.evaluate("() => { try { document.body.innerHTML = '<p>'; } catch (error) { window.refused = error.name; } }")
    assert page.evaluate("() => window.refused") == "TypeError"
