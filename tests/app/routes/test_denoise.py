"""POST /denoise, asked in every way that it promises to understand."""

import io
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
import torch
from PIL import Image, ImageOps
from starlette.testclient import TestClient
from toys import DEADLINE_SECONDS, Gate, Toy, decoded, encoded, noise, wait_for

from app.routes import denoise
from core import Picture, images

PNG = encoded(noise())


def ask(client: TestClient, data: bytes = PNG, name: str = "cat.png", **query: object):
    return client.post("/denoise", params=query, files={"file": (name, data)})


def test_a_picture_comes_back_from_a_form_and_from_a_raw_body_alike(live):
    by_form = ask(live)
    raw = live.post("/denoise", content=PNG, headers={"Content-Type": "image/png"})
    untyped = live.post("/denoise", content=PNG)
    for answer in (by_form, raw, untyped):
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "image/png"
        assert decoded(answer.content).tobytes() == noise().tobytes()  # the model corrects nothing


@pytest.mark.parametrize(
    "wishes", [{}, {"model": "same"}, {"model": "same", "sigma": 25}, {"model": "same", "sigma": 25, "crop": "1,2,30,600"}], ids=str
)
def test_what_is_denoised_while_it_is_decoded_is_the_same_picture(live, wishes):
    """Of one whose model and level are told, the first rows are denoised before the last are there."""
    data = images.write(Picture(torch.rand(640, 400, 3)), "png")
    answer = ask(live, data, **wishes)
    assert answer.status_code == 200, answer.text
    whole = decoded(data)
    assert decoded(answer.content).tobytes() == (whole.crop((1, 2, 31, 602)) if "crop" in wishes else whole).tobytes()
    assert set(re.findall(r"(\w+);dur=", answer.headers["server-timing"])) >= {"decode", "denoise", "encode"}
    cut = ask(live, data[:-1000], **wishes)
    assert (cut.status_code, "cut short" in cut.json()["detail"]) == (422, True)


def test_an_error_that_is_held_holds_nothing_of_the_picture():
    class Pixels:
        pass

    seen = []

    def decoding():
        pixels = Pixels()
        seen.append(weakref.ref(pixels))
        raise OSError

    def denoising():
        pixels = Pixels()
        seen.append(weakref.ref(pixels))
        try:
            decoding()
        except OSError as error:
            raise ValueError from error

    with pytest.raises(ValueError) as held:  # noqa: PT011
        denoising()
    assert all(pixels() is not None for pixels in seen)
    denoise._let_go(held.value)
    assert [pixels() for pixels in seen] == [None, None]


def test_what_was_sent_is_let_go_of_before_the_answer_whoever_still_holds_it(live, monkeypatch):
    held = []

    class Held(denoise.PictureFile):
        def __init__(self):
            super().__init__()
            held.append(self)

    monkeypatch.setattr(denoise, "PictureFile", Held)
    for data in (PNG, PNG[:100], b"no picture", b""):
        ask(live, data)
        live.post("/denoise", content=data)
    assert len(held) == 8
    for file in held:
        with pytest.raises(IndexError):
            file.to_read()


@pytest.mark.parametrize("blind", [True, False])
def test_an_animation_that_begins_in_black_is_denoised_from_where_there_is_noise(serve, blind):
    class Seeing(Toy):
        def estimate(self, pixels):
            return 10 / 255 if pixels.any() else 0.0

        def found(self, pixels, clean):
            return self.estimate(pixels)

    def inverted(pixels, sigma, keep_going):
        return 1 - pixels if pixels.any() else pixels

    frames, file = [Image.new("RGB", (24, 16)), noise(seed=1), noise(seed=2)], io.BytesIO()
    frames[0].save(file, "png", save_all=True, append_images=frames[1:], duration=40)
    toy = Seeing(inverted, blind=blind)
    with serve(toy) as client:
        answer = ask(client, file.getvalue())
    back = decoded(answer.content)
    for number, frame in enumerate(frames):
        back.seek(number)
        assert back.convert("RGB").tobytes() == (ImageOps.invert(frame) if number else frame).tobytes()
    if not blind:
        assert answer.headers["X-Clearfold-Sigma"] == "10.00"
        assert toy.asked == [(10 / 255, 1.0)] * 2


def test_the_headers_say_what_was_done(serve):
    with serve(Toy(sigma=12.3456 / 255)) as client:
        headers = ask(client).headers
    assert headers["X-Clearfold-Sigma"] == "12.35"
    assert headers["X-Clearfold-Model"] == "toy"
    assert headers["X-Clearfold-Device"] == "cpu"
    assert headers["X-Content-Type-Options"] == "nosniff"
    stages = [stage.split(";dur=") for stage in headers["Server-Timing"].split(", ")]
    assert [name for name, _ in stages] == ["decode", "denoise", "encode"]
    assert all(float(milliseconds) >= 0 for _, milliseconds in stages)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("cat.png", "cat-denoised.png"),
        ("Käse \U0001f9c0.PNG", "K%C3%A4se%20%F0%9F%A7%80-denoised.png"),
        ("../../etc/passwd.png", "passwd-denoised.png"),
        ("C:\\pictures\\cat.png", "cat-denoised.png"),
        ("a; b=c.png", "a%3B%20b%3Dc-denoised.png"),
    ],
)
def test_the_name_of_the_answer_says_that_it_was_denoised(serve, sent, told):
    with serve(Toy()) as client:
        assert ask(client, name=sent).headers["Content-Disposition"] == f"inline; filename*=UTF-8''{told}"


def test_the_noise_level_is_read_in_8_bit_steps_and_handed_on_in_image_units(serve):
    toy = Toy(sigma=0.2)
    with serve(toy) as client:
        assert ask(client, sigma=51, strength=0.5).headers["X-Clearfold-Sigma"] == "51.00"
        assert ask(client, sigma="auto").headers["X-Clearfold-Sigma"] == "51.00"
    assert toy.asked == [(0.2, 0.5), (0.2, 1.0)]


def test_the_answer_is_rounded_and_not_cut(serve):
    with serve(Toy(lambda pixels, sigma, going: torch.full_like(pixels, 100.6 / 255))) as client:
        assert decoded(ask(client).content).getpixel((0, 0)) == (101, 101, 101)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "bmp"])
def test_the_answer_has_the_format_that_came_in(serve, format):
    with serve(Toy()) as client:
        answer = ask(client, encoded(noise(), format), "cat")
    assert answer.headers["content-type"] == f"image/{format}"
    assert decoded(answer.content).format == format.upper()


def test_the_answer_has_the_format_and_the_quality_that_were_asked_for(serve):
    with serve(Toy()) as client:
        fine, coarse = (ask(client, format="jpg", quality=quality) for quality in (95, 10))
    assert fine.headers["content-type"] == "image/jpeg"
    assert fine.headers["Content-Disposition"].endswith("cat-denoised.jpg")
    assert len(coarse.content) < len(fine.content) / 2


def test_the_model_that_was_asked_for_is_used(serve):
    with serve(Toy(name="one"), Toy(name="two"), default_model="two") as client:
        assert ask(client).headers["X-Clearfold-Model"] == "two"
        assert ask(client, model="one").headers["X-Clearfold-Model"] == "one"
        unknown = ask(client, model="three")
    assert unknown.status_code == 404
    assert unknown.json()["detail"] == "model = 'three': there is no such model. There are: 'one', 'two'."
    assert unknown.json()["models"] == ["one", "two"]


class TestAuto:
    """With `gaussian` and a blind `photo` there, the picture decides."""

    WHITE = encoded(noise(64, 48))
    SMOOTH = encoded(Image.linear_gradient("L").convert("RGB").resize((64, 48)))

    @pytest.mark.parametrize("query", [{}, {"model": "auto"}])
    @pytest.mark.parametrize(("picture", "model", "reason"), [(WHITE, "gaussian", "white noise: "), (SMOOTH, "photo", "no white noise: ")])
    def test_the_one_that_suits_the_noise_is_used(self, serve, query, picture, model, reason):
        with serve(Toy(name="gaussian"), Toy(name="photo", blind=True), Toy(name="mine")) as client:
            headers = ask(client, picture, **query).headers
        assert headers["X-Clearfold-Model"] == model
        assert headers["X-Clearfold-Reason"].startswith(reason)

    def test_a_blind_model_is_told_no_level_and_says_what_it_found(self, serve):
        photo = Toy(name="photo", blind=True, sigma=20 / 255)
        with serve(Toy(name="gaussian"), photo) as client:
            assert ask(client, self.SMOOTH, strength=0.5).headers["X-Clearfold-Sigma"] == "10.00"
            assert ask(client, self.SMOOTH, sigma=51).headers["X-Clearfold-Sigma"] == "51.00"
        assert photo.asked == [(None, 0.5), (0.2, 1.0)]

    def test_a_model_that_is_asked_for_is_used_whatever_the_picture(self, serve):
        with serve(Toy(name="gaussian"), Toy(name="photo", blind=True)) as client:
            headers = ask(client, self.WHITE, model="photo").headers
        assert (headers["X-Clearfold-Model"], headers["X-Clearfold-Reason"]) == ("photo", "asked for")

    def test_a_default_that_was_chosen_is_used_unless_auto_is_asked_for(self, serve):
        with serve(Toy(name="gaussian"), Toy(name="photo", blind=True), default_model="photo") as client:
            headers = ask(client, self.WHITE).headers
            assert ask(client, self.WHITE, model="auto").headers["X-Clearfold-Model"] == "gaussian"
        assert (headers["X-Clearfold-Model"], headers["X-Clearfold-Reason"]) == ("photo", "the default")

    def test_with_nothing_to_choose_from_it_is_the_default(self, serve):
        with serve(Toy(name="mine"), Toy(name="gaussian")) as client:
            headers = ask(client, self.SMOOTH, model="auto").headers
        assert (headers["X-Clearfold-Model"], headers["X-Clearfold-Reason"]) == ("mine", "no photo to choose from")


def test_only_the_region_that_was_asked_for_is_made_and_sent(serve):
    toy = Toy(lambda pixels, sigma, going: 1 - pixels)
    picture = noise()
    picture.putalpha(noise().getchannel("R"))
    with serve(toy) as client:
        whole, part = (ask(client, encoded(picture), **query) for query in ({}, {"crop": "5,3,10,8"}))
    assert part.status_code == 200, part.text
    assert decoded(part.content).tobytes() == decoded(whole.content).crop((5, 3, 15, 11)).tobytes()
    assert part.headers["X-Clearfold-Sigma"] == whole.headers["X-Clearfold-Sigma"]


def test_a_kept_picture_is_asked_about_again_without_sending_it(serve):
    toy = Toy(lambda pixels, sigma, going: 1 - pixels)
    picture = noise()
    picture.putalpha(noise().getchannel("R"))
    with serve(toy) as client:
        plain = ask(client, encoded(picture))
        first = ask(client, encoded(picture), keep=True, crop="0,0,1,1")
        kept = {"X-Clearfold-Kept": first.headers["X-Clearfold-Kept"]}
        again = client.post("/denoise", headers=kept)
        part = client.post("/denoise", params={"crop": "5,3,10,8", "strength": 0, "format": "webp"}, headers=kept)
    assert "X-Clearfold-Kept" not in plain.headers
    assert again.content == plain.content
    assert again.headers["Content-Disposition"] == plain.headers["Content-Disposition"]
    assert decoded(part.content).size == (10, 8)
    assert part.headers["content-type"] == "image/webp"
    assert toy.asked == [(toy.estimate(torch.empty(0)), 1.0)] * 3


def test_metadata_left_out_of_one_answer_is_kept_for_the_next(serve):
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    file = io.BytesIO()
    noise().save(file, "png", exif=exif)
    with serve(Toy()) as client:
        kept = ask(client, file.getvalue(), keep=True, metadata="strip").headers["X-Clearfold-Kept"]
        again = client.post("/denoise", headers={"X-Clearfold-Kept": kept})
    assert decoded(again.content).getexif()[0x010E] == "a cat"


def test_a_picture_that_is_not_kept_is_to_be_sent_again(serve):
    with serve(Toy()) as client:
        answer = client.post("/denoise", headers={"X-Clearfold-Kept": "guessed"})
        both = client.post("/denoise", headers={"X-Clearfold-Kept": "guessed"}, content=PNG)
        chunked = client.post("/denoise", headers={"X-Clearfold-Kept": "guessed"}, content=iter([PNG]))
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:clearfold:problem:unknown-picture")
    assert answer.json()["detail"] == "The picture is not kept here, or no longer: send it again."
    for each in (both, chunked):
        assert (each.status_code, each.json()["detail"]) == (
            422,
            "X-Clearfold-Kept stands for the picture: leave it out, or send an empty body.",
        )


def test_where_nothing_is_to_be_kept_a_wish_for_it_is_no_error(serve):
    with serve(Toy(), max_kept_bytes=0) as client:
        answer = ask(client, keep=True)
    assert answer.status_code == 200
    assert "X-Clearfold-Kept" not in answer.headers


def test_a_part_of_a_kept_picture_counts_as_no_more_than_that_part(serve):
    gate = Gate()
    with serve(Toy(gate, name="slow"), Toy(), max_queued_pixels=24 * 16 + 80) as client, ThreadPoolExecutor() as others:
        kept = {"X-Clearfold-Kept": ask(client, model="toy", keep=True).headers["X-Clearfold-Kept"]}
        first = others.submit(ask, client, model="slow")
        wait_for(gate.began.is_set, "the slow picture")
        whole = client.post("/denoise", headers=kept)
        part = others.submit(client.post, "/denoise", params={"crop": "0,0,10,8", "model": "toy"}, headers=kept)
        wait_for(lambda: part.done() or "clearfold_pictures_admitted 2.0" in client.get("/metrics").text, "the part's place")
        gate.opened.set()
        assert (first.result().status_code, part.result().status_code) == (200, 200)
    assert whole.status_code == 429


@pytest.mark.parametrize("crop", ["0,0,25,1", "0,0,0,0", "24,0,1,1", "0,999999999,1,1"])
def test_a_region_outside_the_picture_is_refused(serve, crop):
    with serve(Toy()) as client:
        answer = ask(client, crop=crop)
    assert answer.status_code == 422
    assert f"the region {crop} (x,y,width,height) must hold a pixel and lie within 24 x 16" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({"crop": "1,2,3"}, "crop = '1,2,3': must be four whole numbers: x,y,width,height."),
        ({"crop": "-1,0,5,5"}, "crop = '-1,0,5,5': must be four whole numbers: x,y,width,height."),
        ({"crop": "0,0,5,5e9"}, "crop = '0,0,5,5e9': must be four whole numbers: x,y,width,height."),
        ({"sigma": "nan"}, "sigma = 'nan': must be 'auto' or a number from 0 to 100."),
        ({"sigma": "inf"}, "sigma = 'inf': must be 'auto' or a number from 0 to 100."),
        ({"sigma": "100.1"}, "sigma = '100.1': must be 'auto' or a number from 0 to 100."),
        ({"strength": "2.5"}, "strength = '2.5': Input should be less than or equal to 2."),
        ({"strength": "nan"}, "strength = 'nan': Input should be a finite number."),
        ({"quality": "0"}, "quality = '0': Input should be greater than or equal to 1."),
        ({"format": "xcf"}, "format = 'xcf': must be one of png, jpeg, webp, tiff, bmp, gif, avif, heic."),
        (
            {"sigmma": "25"},
            "sigmma = '25': there is no such parameter. There are: sigma, strength, model, format, quality, metadata, crop, keep.",
        ),
    ],
)
def test_a_wish_against_its_rule_is_refused_by_name(serve, query, detail):
    with serve(Toy()) as client:
        answer = ask(client, **query)
    assert (answer.status_code, answer.json()["detail"]) == (422, detail)


@pytest.mark.parametrize(
    ("send", "status", "words"),
    [
        ({"files": {"file": ("a.png", PNG[:-40])}}, 422, "cut short"),
        ({"files": {"file": ("a.png", b"")}}, 422, "empty"),
        ({"files": {"other": ("a.png", PNG)}}, 422, "file is missing"),
        ({"data": {"file": "a.png"}, "files": {"x": ("x", b"x")}}, 422, "file is missing"),
        ({"files": {"file": ("a.txt", b"no picture at all")}}, 415, "send one of png, jpeg"),
        ({"content": PNG, "headers": {"Content-Type": "application/json"}}, 415, "'application/json'"),
        ({"content": PNG, "headers": {"Content-Type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "Invalid multipart"),
    ],
)
def test_what_is_no_whole_picture_is_refused(serve, send, status, words):
    with serve(Toy()) as client:
        answer = client.post("/denoise", **send)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "name", "field", "value", "told"),
    [
        ("/denoise", "file", "sigma", "15", "sigma = '15': sigma is a parameter of the address, not of the form: /denoise?sigma=15."),
        ("/denoise", "file", "crop", "a b", "crop = 'a b': crop is a parameter of the address, not of the form: /denoise?crop=a%20b."),
        ("/denoise", "file", "colour", "blue", "colour = 'blue': there is no such field. There are: file."),
        (
            "/denoise/batch",
            "files",
            "sigma",
            "5",
            "sigma = '5': sigma is a parameter of the address, not of the form: /denoise/batch?sigma=5.",
        ),
        ("/denoise/batch", "files", "keep", "true", "keep = 'true': there is no such field. There are: files."),
        ("/denoise/batch", "files", "files", "b.png", "files = 'b.png': it must be a file, and is text: -F files=@…"),
    ],
)
def test_a_wish_in_the_form_is_not_passed_over_in_silence(serve, path, name, field, value, told):
    with serve(Toy()) as client:
        answer = client.post(path, files={name: ("a.png", PNG)}, data={field: value})
    assert (answer.status_code, answer.json()["detail"]) == (422, told)


def test_a_file_beside_the_pictures_is_refused_by_the_name_of_its_field(serve):
    with serve(Toy()) as client:
        answer = client.post("/denoise/batch", files=[("files", ("a.png", PNG)), ("file", ("b.png", PNG))])
    assert (answer.status_code, answer.json()["detail"]) == (422, "file: there is no such field. There are: files.")


def test_of_several_files_it_is_said_where_to_send_them(serve):
    with serve(Toy()) as client:
        answer = client.post("/denoise", files=[("file", ("a.png", PNG)), ("file", ("b.png", PNG))])
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "There are more files than one, which is all that /denoise takes: send several to /denoise/batch, in 'files'."
    )


def test_a_picture_of_too_many_pixels_is_refused_with_the_limit(serve):
    with serve(Toy(), max_pixels=383) as client:
        answer = ask(client)  # 24 by 16 pixels
    assert answer.status_code == 422
    assert "at most max_pixels = 383 are accepted" in answer.json()["detail"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_too_many_bytes_is_refused_with_the_limit(serve, chunked):
    with serve(Toy(), max_upload_bytes=1000) as client:
        answer = client.post("/denoise", content=iter([PNG, PNG]) if chunked else PNG + PNG)
    assert answer.status_code == 413
    assert answer.json()["limit"] == {"max_upload_bytes": 1000}
    assert "max_upload_bytes = 1000" in answer.json()["detail"]


def test_two_at_once_each_get_their_own_picture(serve):
    both_are_here = threading.Barrier(2, timeout=DEADLINE_SECONDS)

    def add(pixels, sigma, going):
        both_are_here.wait()
        return pixels + sigma

    black = encoded(noise().point(lambda value: 0))
    with serve(Toy(add), workers=2) as client, ThreadPoolExecutor() as threads:
        answers = threads.map(lambda sigma: ask(client, black, sigma=sigma).content, (10, 20))
        assert [decoded(answer).getpixel((0, 0))[0] for answer in answers] == [10, 20]


def test_a_picture_being_denoised_holds_up_nobody_else(serve):
    gate = Gate()
    with serve(Toy(gate)) as client, ThreadPoolExecutor() as threads:
        answer = threads.submit(ask, client)
        assert gate.began.wait(DEADLINE_SECONDS)
        assert client.get("/livez").status_code == 200
        assert not answer.done()
        gate.opened.set()
        assert answer.result().status_code == 200


def test_a_picture_too_many_is_told_when_to_come_again(serve):
    gate = Gate()
    with serve(Toy(gate), workers=1, max_queued_pictures=0) as client, ThreadPoolExecutor() as threads:
        admitted = threads.submit(ask, client)
        assert gate.began.wait(DEADLINE_SECONDS)
        refused = ask(client)
        assert ask(client, strength="none").status_code == 429  # told before anything else of it is looked at
        assert 'clearfold_requests_total{door="/denoise",method="POST",status="429"} 2.0' in client.get("/metrics").text
        gate.opened.set()
        assert admitted.result().status_code == 200
        assert ask(client).status_code == 200
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["limit"] == {"max_queued_pictures": 0}


def test_a_client_that_leaves_stops_the_work_at_the_next_tile(serve):
    gate = Gate()
    sent: list[dict] = []
    body = iter([{"type": "http.request", "body": PNG, "more_body": False}])

    async def receive():
        if (message := next(body, None)) is not None:
            return message
        await anyio.to_thread.run_sync(gate.began.wait, DEADLINE_SECONDS)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    with serve(Toy(gate)) as client:
        scope = {"type": "http", "method": "POST", "path": "/denoise", "raw_path": b"/denoise", "query_string": b""}
        scope |= {"headers": [], "root_path": "", "scheme": "http", "server": ("test", 80), "state": client.app_state}
        client.portal.call(client.app, scope, receive, send)
        assert gate.stopped.is_set()
        assert sent[0]["status"] == 499  # which nobody hears
        gate.opened.set()
        assert ask(client).status_code == 200  # its place is free again
