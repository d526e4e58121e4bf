"""The page's Train and Models parts in a true browser, with true child processes that train."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browsing import Tabs, accessible, button, drop, needs_browser, served, shoot, shown
from playwright.sync_api import Page, Route, expect
from toys import encoded, noise, wait_for

from app.main import create_app
from app.settings import Settings
from core import DataError, data, methods

pytestmark = needs_browser

PICTURES = [(f"{seed}.png", encoded(noise(100, 100, seed))) for seed in range(3)]


@pytest.fixture(scope="module")
def address(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service with the small model `same`."""
    with served(create_app(Settings(models_dir=models_dir, train_dir=tmp_path_factory.mktemp("train"), device="cpu"))) as address:
        yield address


@pytest.fixture
def page(open_tab: Tabs, address: str) -> Page:
    page = open_tab(viewport={"width": 1100, "height": 900})
    page.goto(f"{address}/#train")
    return page


def choose(page: Page, *files: tuple[str, bytes]) -> None:
    chosen = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
    page.locator(".make input[type=file]").first.set_input_files(chosen)  # type: ignore[arg-type]


def start(page: Page, name: str, **fields: str) -> None:
    """Fills in the form, and waits for the job's own view."""
    page.get_by_label("Name").fill(name)
    page.get_by_text("More choices").click()
    for label, value in fields.items():
        field = page.get_by_label(label.replace("_", " "), exact=True)
        field.select_option(value) if label == "Start_from" else field.fill(value)
    button(page, "Start training").click()
    expect(page.locator(".job h2")).to_contain_text(name)


def status(page: Page, words: str) -> None:
    expect(page.locator(".job h2 .pill")).to_have_text(words)


def test_a_model_is_trained_compared_used_and_put_back(page: Page, address: str) -> None:
    shoot(page, "train-empty")
    expect(button(page, "Start training")).to_be_disabled()
    choose(page, *PICTURES)
    expect(page.locator(".dropzone")).to_contain_text("3 pictures")
    expect(page.locator(".glimpses canvas")).to_have_count(3)
    shoot(page, "train-chosen")
    start(page, "my-camera", Steps="2")
    status(page, "done")
    expect(page.locator(".verdict")).to_have_text(re.compile(r"^(Better than its parent by|(Hardly|Not) better than its parent)"))
    expect(page.locator(".scores dd")).to_have_count(3)
    expect(page.locator(".panels img")).to_have_count(3)
    for image in page.locator(".panels img").all():
        assert wait_for(lambda image=image: image.evaluate("image => image.naturalWidth"), "the sample") > 0
    expect(page.locator(".chart figcaption")).to_have_text(re.compile(r"^Step 2: loss [\d.]+, quality [\d.]+ dB$"))
    page.get_by_text("Log", exact=True).click()
    shoot(page, "train-done")
    accessible(page)

    page.locator(".outcome input[type=file]").set_input_files({"name": "own.png", "mimeType": "image/png", "buffer": PICTURES[0][1]})
    expect(page.locator(".compared .tag")).to_have_text(["Automatic", "my-camera"])
    assert shown(page, ".compared canvas.picture").getcolors(1) is None  # more than one colour
    shoot(page, "train-compared")

    def default() -> str:
        return httpx.get(f"{address}/models").json()["chosen"]

    assert default() == "auto"
    button(page, "Use this model").click()
    expect(page.locator(".outcome")).to_contain_text("my-camera is in use")
    assert default() == "my-camera"
    button(page, "Back to automatic").click()
    expect(page.locator(".outcome")).to_contain_text("The picture decides")
    assert default() == "auto"

    page.get_by_role("link", name="All trainings").click()
    expect(page.locator(".jobs li")).to_contain_text(["my-camera"])
    page.get_by_role("link", name="Models").click()
    models = page.locator(".models > li")
    expect(models).to_have_count(2)
    mine = models.filter(has_text="my-camera")
    mine.get_by_text("Card", exact=True).click()
    expect(mine.locator(".card")).to_contain_text("self-supervised")
    shoot(page, "models")
    accessible(page)
    with page.expect_download() as download:
        button(page, "Weights: my-camera").click()
    assert download.value.suggested_filename == "my-camera.safetensors"
    weights = Path(download.value.path()).read_bytes()
    assert weights == httpx.get(f"{address}/models/my-camera/weights").content
    button(page, "Use it: my-camera").focus()
    page.keyboard.press("Enter")
    expect(mine).to_contain_text("in use")
    expect(mine.get_by_role("heading", name="my-camera")).to_be_focused()  # what was pressed is gone
    button(page, "Let the picture decide again").click()
    expect(page.locator(".pill:visible")).to_have_count(0)
    assert default() == "auto"
    button(page, "Delete: my-camera").click()
    button(page, "Delete for good?: my-camera").click()
    expect(models).to_have_count(1)
    expect(page.get_by_role("heading", name="Models")).to_be_focused()
    page.locator(".sheet input[accept='.safetensors']").set_input_files(
        {"name": "brought.safetensors", "mimeType": "application/octet-stream", "buffer": weights}
    )
    expect(models).to_have_count(2)
    httpx.delete(f"{address}/models/brought").raise_for_status()


def test_a_job_survives_a_reload_and_is_cancelled_goes_on_and_is_deleted(page: Page, address: str) -> None:
    choose(page, *PICTURES)
    start(page, "long", Minutes="60", Steps="1000000", Start_from="scratch")
    status(page, "training")
    curve = page.locator(".chart figcaption")
    expect(curve).to_have_text(re.compile(r"^Step [\d,]+: loss"))
    shoot(page, "train-running")
    accessible(page)
    page.reload()
    status(page, "training")
    expect(curve).to_have_text(re.compile(r"^Step [\d,]+: loss"))  # of before the reload, sent again
    expect(page.locator(".pace")).to_contain_text("left")
    button(page, "Cancel").click()
    status(page, "cancelled")
    button(page, "Go on").click()
    expect(page.locator(".job h2 .pill")).to_have_text(re.compile("waiting|training"))
    status(page, "training")
    button(page, "Cancel").click()
    status(page, "cancelled")
    page.get_by_text("Log", exact=True).click()
    shoot(page, "train-cancelled")
    page.locator(".job").get_by_role("button", name="Delete").click()
    button(page, "Delete for good?").click()
    expect(page.locator(".home")).to_be_visible()
    expect(page.locator(".jobs")).not_to_contain_text("long")


def scenes(folder: Path, *shots: str) -> Path:
    """Three scenes, two shots of each."""
    for seed in range(6):
        path = folder / f"{shots[seed // 3]}{seed % 3}.png" if len(shots) == 2 else folder / shots[0].format(seed % 3, seed // 3 + 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(100, 100, seed)))
    return folder


def test_a_dropped_folder_of_pairs_is_trained_on(page: Page, address: str, tmp_path: Path) -> None:
    page.get_by_label("Pairs").check()
    drop(page, ".dropzone", scenes(tmp_path / "scenes", "one/", "two/"))
    zone = page.locator(".dropzone")
    expect(zone).to_contain_text("6 pictures")
    expect(zone).to_contain_text("3 pairs by their names")
    expect(page.locator(".glimpses canvas")).to_have_count(6)
    shoot(page, "train-pairs")
    with page.expect_response(f"{address}/train") as answer:
        start(page, "by-pairs", Steps="2")
    status(page, "done")
    job = httpx.get(f"{address}{answer.value.headers['location']}").json()
    assert (job["method"], job["pictures"]) == ("pairs", 6)
    expect(page.locator(".outcome")).to_contain_text("estimated from pairs")
    httpx.delete(f"{address}/models/by-pairs").raise_for_status()


def test_the_pairs_are_counted_by_the_services_rules(page: Page, tmp_path: Path) -> None:
    page.get_by_label("Pairs").check()
    zone = page.locator(".dropzone")
    ways = [("{}_{}.png",), ("{}-a{}.png",), ("{}0{}.png",), ("{}{}x.png",), ("{}/{}.png",)]
    ways += [("noisy/", "clean/"), ("Noisy/", "deep/Clean/"), ("a/", "b/c")]
    for number, shots in enumerate(ways):
        folder = scenes(tmp_path / str(number), *shots)
        try:
            pairs = len(methods.pair([path.relative_to(folder).as_posix() for path in data.find([folder])]).pairs)
        except DataError:
            pairs = 0
        drop(page, ".dropzone", *sorted(folder.iterdir()))
        expect(zone).to_contain_text("6 pictures")
        expect(zone).to_contain_text(f"{pairs} pairs by their names" if pairs else "No pairs by their names yet")
        button(page, "Take all out").click()
    for name in ("noisy/a_1.png", "noisy/a_2.png", "clean/b_1.png", "clean/b_2.png"):  # truths of other scenes, not two shots of each
        path = tmp_path / "apart" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURES[0][1])
    drop(page, ".dropzone", *sorted((tmp_path / "apart").iterdir()))
    expect(zone).to_contain_text("No pairs by their names yet")
    button(page, "Take all out").click()
    for name in ("cat_noisy.png", "cat_clean.jpg"):
        (tmp_path / name).write_bytes(PICTURES[0][1])
    drop(page, ".dropzone", tmp_path / "cat_noisy.png", tmp_path / "cat_clean.jpg")
    expect(zone).to_contain_text("1 pair by their names")


def test_pictures_that_cannot_be_trained_on_are_refused_in_the_services_words(page: Page, address: str) -> None:
    choose(page, ("a_1.png", b"no picture"), ("a_2.png", PICTURES[0][1]))
    page.get_by_label("Pairs").check()
    expect(page.locator(".dropzone")).to_contain_text("1 pair by their names")
    button(page, "Start training").click()
    told = httpx.post(
        f"{address}/train", files=[("files", ("a_1.png", b"no picture")), ("files", ("a_2.png", PICTURES[0][1]))], data={"method": "pairs"}
    )
    expect(page.get_by_role("alert")).to_contain_text(told.json()["detail"])
    shoot(page, "train-refused")
    button(page, "Take all out").click()
    expect(page.locator(".dropzone")).to_contain_text("Nothing chosen yet")


JOB = {
    "id": "a1", "status": "running", "method": "noisy", "model": "mine", "parent": "same", "activate": "never", "pictures": 3,
    "minutes": 10.0, "attempt": 1, "created": "2026-01-02T03:04:05Z", "started": None, "ended": None, "step": None, "steps": 9,
    "loss": None, "psnr": None, "seconds_trained": 0.0, "seconds_left": None, "reason": None, "note": None, "quality": None,
    "activated": False, "sample": None,
}  # fmt: skip


def test_what_a_system_keeps_in_a_folder_for_itself_is_left_out(page: Page, tmp_path: Path) -> None:
    for name in (".DS_Store", "deep/.thumbnails/a.png", "a.png", "deep/b.png"):
        path = tmp_path / "camera" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURES[0][1])
    page.locator(".make input[webkitdirectory]").set_input_files(tmp_path / "camera")
    expect(page.locator(".dropzone")).to_contain_text("2 pictures,")


def test_a_field_that_is_out_of_sight_is_shown_where_it_is_wrong_and_not_minded_where_it_is_not_asked_for(page: Page) -> None:
    choose(page, *PICTURES)
    sent: list[str] = []
    page.on("request", lambda request: request.method == "POST" and sent.append(request.url))
    page.get_by_label("Clean pictures").check()
    more = page.locator(".make details")
    more.locator("summary").click()
    page.get_by_label("Steps", exact=True).fill("0")
    page.get_by_label("Least σ").fill("")
    more.locator("summary").click()
    button(page, "Start training").click()
    expect(page.get_by_label("Steps", exact=True)).to_be_focused()
    expect(page.get_by_label("Steps", exact=True)).to_be_visible()
    assert sent == []
    page.get_by_label("Steps", exact=True).fill("")
    page.get_by_label("Noisy pictures").check()  # which have no σ
    page.route("**/train", lambda route: route.fulfill(status=422, json={"title": "Played", "detail": "It was sent."}))
    button(page, "Start training").click()
    expect(page.get_by_role("alert")).to_contain_text("It was sent.")


def test_whoever_goes_elsewhere_while_pictures_are_sent_stays_there_and_finds_what_came_of_it(page: Page) -> None:
    sendings: list[Route] = []
    page.route("**/train", lambda route: sendings.append(route))
    page.route("**/train/a1*", lambda route: route.fulfill(json=JOB))
    answers = [{"status": 422, "json": {"title": "Played", "detail": "No such luck."}}, {"status": 202, "json": JOB}]
    for number, answer in enumerate(answers):
        choose(page, *PICTURES)
        button(page, "Start training").click()
        choose(page, *PICTURES)
        expect(button(page, "Start training")).to_be_disabled()  # not twice at once
        wait_for(lambda number=number: page.evaluate("1") and len(sendings) > number, "the pictures to be sent")
        page.get_by_role("link", name="Denoise").click()
        with page.expect_response("**/train"):
            sendings[number].fulfill(**answer)  # type: ignore[arg-type]
        expect(page.locator(".sending")).to_have_css("visibility", "hidden")
        expect(page.locator(".empty")).to_be_visible()
        page.get_by_role("link", name="Train").click()
        if answer["status"] == 422:
            expect(page.get_by_role("alert")).to_contain_text("No such luck.")
        else:
            expect(page.get_by_role("alert")).to_be_hidden()
            expect(page.locator(".dropzone")).to_contain_text("Nothing chosen yet")


def test_a_picture_that_cannot_be_compared_leaves_nothing_that_looks_like_work(page: Page, address: str) -> None:
    page.route("**/train/a1", lambda route: route.fulfill(json=JOB | {"status": "done", "model": "same", "parent": None}))
    page.route("**/train/a1/events", lambda route: route.fulfill(status=204))
    page.goto(f"{address}/#train/a1")
    page.locator(".outcome input[type=file]").set_input_files({"name": "words.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_text("Denoising with both")).to_be_hidden()


def test_a_lost_connection_is_taken_up_where_it_broke_off(page: Page, address: str) -> None:
    """The service's side is played: only so does the line break at a known place."""
    failed = JOB | {"status": "failed", "reason": "The disk is full: <b>make room</b>.", "step": 2}

    def event(id: int, kind: str, data: object) -> str:
        return f"retry: 10\nid: {id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"

    progress = [
        {"step": step, "steps": 9, "loss": 0.5 / step, "pixels_per_second": 1.0, "seconds_trained": 1.0, "seconds_left": 60.0}
        for step in (1, 2)
    ]
    answers = {
        "": event(1, "job", JOB) + event(2, "progress", progress[0]) + "id: 3\nevent: progress\ndata: {cut",
        "2": ": still there\n\n" + event(3, "progress", progress[1]) + event(4, "job", failed),
    }
    asked: list[str] = []

    def events(route: Route) -> None:
        asked.append(route.request.headers.get("last-event-id", ""))
        body = answers.get(asked[-1])
        route.fulfill(status=200 if body else 204, content_type="text/event-stream", body=body or "")

    page.route("**/train/a1", lambda route: route.fulfill(json=JOB))
    page.route("**/train/a1/events", events)
    page.goto(f"{address}/#train/a1")
    status(page, "failed")
    expect(page.locator(".chart figcaption")).to_have_text("Step 2: loss 0.2500")
    expect(page.locator(".outcome .problem")).to_contain_text("The disk is full: <b>make room</b>.")  # as text
    expect(button(page, "Go on")).to_be_visible()
    wait_for(lambda: asked == ["", "2", "4"], "the end of the questions")
    shoot(page, "train-failed")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [(360, 740), (2560, 1440)])
def test_everybody_can_train_in_any_theme_and_size(open_tab: Tabs, address: str, theme: str, size: tuple[int, int]) -> None:
    page = open_tab(viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce")
    page.goto(f"{address}/#train")
    expect(page.get_by_label("Start from")).to_contain_text("same")
    page.get_by_label("Clean pictures").check()
    page.get_by_text("More choices").click()
    shoot(page, f"train-{theme}-{size[0]}")
    accessible(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
    page.goto(f"{address}/#train/nowhere")
    expect(page.get_by_role("alert")).to_contain_text("There is no such training job")
    page.goto(f"{address}/#models")
    expect(page.locator(".models > li")).not_to_have_count(0)
    shoot(page, f"models-{theme}-{size[0]}")
    accessible(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
