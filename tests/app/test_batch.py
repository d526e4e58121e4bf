"""Many files in, a zip out: each file's own fate, names that are safe, and bytes that are sent early."""

import io
import json
import threading
import zipfile
from pathlib import Path

import anyio
import pytest
from toys import DEADLINE_SECONDS, Gate, Toy, decoded, encoded, noise

from app import batch, zips
from app.errors import Invalid
from app.settings import Settings

PNG = encoded(noise())
CUT = encoded(noise(99, 99), "jpeg")[:-500]  # its header is sound


def zipped(*entries: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def ask(client, *files: tuple[str, bytes], **query):
    return client.post("/denoise/batch", params=query, files=[("files", file) for file in files])


def opened(answer) -> zipfile.ZipFile:
    assert answer.status_code == 200, answer.text
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    return archive


def test_every_file_comes_back_in_a_zip_and_a_bad_one_is_told_inside(serve):
    with serve(Toy()) as client:
        files = ("a.png", PNG), ("b.txt", b"words"), ("c.png", PNG[:99]), ("d.jpg", encoded(noise(), "jpeg")), ("e.jpg", CUT)
        answer = ask(client, *files)
    assert answer.headers["content-type"] == "application/zip"
    archive = opened(answer)
    assert archive.namelist() == ["a-denoised.png", "b.problem.json", "c.problem.json", "d-denoised.jpg", "e.problem.json"]
    assert decoded(archive.read("a-denoised.png")).tobytes() == noise().tobytes()
    told = [json.loads(archive.read(name)) for name in ("b.problem.json", "c.problem.json", "e.problem.json")]
    assert [(each["status"], each["instance"]) for each in told] == [(415, "b.txt"), (422, "c.png"), (422, "e.jpg")]
    assert all("cut short" in each["detail"] for each in told[1:])


def test_zips_are_looked_into_and_wishes_are_for_all(serve):
    inside = zipped(("x/one.png", PNG), ("x/two.png", PNG), ("__MACOSX/._one.png", b"?"), (".DS_Store", b"?"), ("x/", b""))
    with serve(Toy()) as client:
        archive = opened(ask(client, ("a.zip", inside), ("one.png", PNG), format="webp"))
    assert archive.namelist() == ["x/one-denoised.webp", "x/two-denoised.webp", "one-denoised.webp"]


def badly_named() -> bytes:
    """A zip whose entry says that its name is UTF-8, which it is not."""
    data = zipped(("\u00e9.png", PNG))
    return data.replace("\u00e9.png".encode(), b"\xff\xff.png")


def test_a_zip_with_a_name_that_is_none_is_refused(serve):
    with serve(Toy()) as client:
        answer = ask(client, ("a.zip", badly_named()))
    assert answer.status_code == 422
    assert "'a.zip' cannot be unzipped" in answer.json()["detail"]


def test_a_list_of_contents_is_not_read_where_it_is_far_longer_than_that_of_so_many_files(serve, monkeypatch):
    monkeypatch.setattr(zips, "LEAST_BYTES", 0)
    listed = zipped(*((f"folder {number}/", b"") for number in range(40)))
    with serve(Toy(), max_batch_files=2) as client:
        answer = ask(client, ("a.zip", listed))
    assert answer.status_code == 422
    assert answer.json()["detail"] == "There are more files than max_batch_files = 2: send fewer at a time."


def test_more_files_than_are_taken_are_refused_in_words_of_ours(serve):
    with serve(Toy(), max_batch_files=2) as client:
        answer = ask(client, *((f"{number}.png", PNG) for number in range(4)))
    assert answer.status_code == 422
    assert answer.json()["detail"] == "There are more files than max_batch_files = 2: send fewer at a time."


@pytest.mark.parametrize(("name", "made"), [("..png", "picture"), (". .png", "picture"), ("a..png", "a."), ("x/..png", "x/picture")])
def test_a_name_of_dots_is_none(name, made):
    assert batch.Names().take(name, ".png") == f"{made}.png"


def test_a_failure_of_ours_is_told_inside_too_and_the_rest_go_on(serve):
    def work(pixels, sigma, going):
        if pixels.shape[0] == 9:
            raise RuntimeError("a secret of the inside")
        return pixels

    with serve(Toy(work)) as client:
        archive = opened(ask(client, ("bad.png", encoded(noise(9, 9))), ("good.png", PNG)))
    assert archive.namelist() == ["bad.problem.json", "good-denoised.png"]
    assert b"secret" not in archive.read("bad.problem.json")


def test_a_large_entry_is_refused_by_the_bytes_that_come_out_of_it(serve):
    with serve(Toy(), max_upload_bytes=5000) as client:
        archive = opened(ask(client, ("a.zip", zipped(("bomb.png", bytes(1_000_000)), ("a.png", PNG)))))
    assert archive.namelist() == ["bomb.problem.json", "a-denoised.png"]
    assert json.loads(archive.read("bomb.problem.json"))["status"] == 413


@pytest.mark.parametrize(
    ("send", "status", "words"),
    [
        ({"files": [("files", ("a.zip", zipped(*((f"{n}.png", b"") for n in range(4)))))]}, 422, "max_batch_files = 3"),
        ({"files": [("files", ("a.zip", b"PK\x03\x04 no zip"))]}, 422, "'a.zip' cannot be unzipped"),
        ({"files": [("other", ("a.png", PNG))]}, 422, "files is empty"),
        ({"content": PNG}, 415, "the body must be multipart/form-data"),
        ({"files": [("files", ("a.png", bytes(9000)))]}, 413, "max_batch_bytes = 8000"),
    ],
)
def test_what_is_no_batch_is_refused_as_a_whole(serve, send, status, words):
    with serve(Toy(), max_batch_files=3, max_batch_bytes=8000) as client:
        answer = client.post("/denoise/batch", **send)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("../../etc/passwd.png", "etc/passwd-x.png"),
        ("/etc/passwd.png", "etc/passwd-x.png"),
        ("C:\\pictures\\cat.png", "C_/pictures/cat-x.png"),
        ("a\x00b\n.png", "a_b_-x.png"),
        ("", "picture-x.png"),
        ("..", "picture-x.png"),
        (".png", ".png-x.png"),
        ("n" * 500 + ".png", "n" * 100 + "-x.png"),
        ("a/b/c/d/e/f/g/h/i/j.png", "c/d/e/f/g/h/i/j-x.png"),
    ],
)
def test_a_name_never_leads_out_of_the_zip(name, clean):
    assert batch.Names().take(name, "-x.png") == clean


def test_no_name_is_taken_twice_whatever_the_case():
    names = batch.Names()
    assert [names.take(name, ".png") for name in ("a.gif", "A.png", "b/a.png", "a.x")] == ["a.png", "A-2.png", "b/a.png", "a-3.png"]


def test_nothing_is_unpacked_before_it_is_its_turn():
    archive = io.BytesIO(zipped(("a.png", PNG)).replace(b"IDAT", b"IDAX"))
    (file,) = batch.files([("a.zip", archive)], Settings())
    with pytest.raises(Invalid, match=r"'a\.png' cannot be unzipped"):
        file.read()


def asgi(client, body: bytes, boundary: bytes):
    scope = {"type": "http", "method": "POST", "path": "/denoise/batch", "raw_path": b"/denoise/batch", "query_string": b""}
    scope |= {"headers": [(b"content-type", b"multipart/form-data; boundary=" + boundary)], "root_path": "", "scheme": "http"}
    return scope | {"server": ("test", 80), "state": client.app_state}


def form(boundary: bytes, *names: str) -> bytes:
    head = b'--%b\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n\r\n%b\r\n'
    return b"".join(head % (boundary, name.encode(), PNG) for name in names) + b"--%b--\r\n" % boundary


def test_the_first_picture_is_sent_while_the_second_is_denoised_and_a_client_that_leaves_stops_the_work(serve, tmp_path: Path):
    gate, first_sent, calls = Gate(), threading.Event(), []

    def work(pixels, sigma, going):
        calls.append(None)
        return pixels if len(calls) == 1 else gate(pixels, sigma, going)

    body, sent = iter([{"type": "http.request", "body": form(b"b", "a.png", "b.png"), "more_body": False}]), bytearray()

    async def receive():
        if (message := next(body, None)) is not None:
            return message
        await anyio.to_thread.run_sync(first_sent.wait, DEADLINE_SECONDS)
        await anyio.to_thread.run_sync(gate.began.wait, DEADLINE_SECONDS)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.extend(message.get("body", b""))
        if b"a-denoised.png" in sent:
            first_sent.set()

    with serve(Toy(work)) as client:
        client.portal.call(client.app, asgi(client, b"", b"b"), receive, send)
        assert gate.stopped.is_set()
        assert first_sent.is_set()
        assert b"b-denoised.png" not in sent
        gate.opened.set()
        assert opened(ask(client, ("a.png", PNG))).namelist() == ["a-denoised.png"]
        assert client.app_state["workers"].admitted == 0
        assert client.app_state["workers"]._batches == 0


def test_a_batch_too_many_is_told_when_to_come_again_before_it_is_sent(serve):
    with serve(Toy(), max_batches=1) as client:
        with client.app_state["workers"].batch():
            refused = ask(client, ("a.png", PNG))
        assert refused.status_code == 429
        assert refused.json()["limit"] == {"max_batches": 1}
        assert ask(client).status_code in (415, 422)  # nothing came, and the place is free again
        assert ask(client, ("a.png", PNG)).status_code == 200
