"""The service as a whole: how it starts, what it says of itself, and that its pages need no other host."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient
from toys import Toy, encoded, noise

from app import __version__
from app.errors import PROBLEM_JSON, UnknownModel
from app.main import WEB, create_app
from app.metrics import MEDIA_TYPE
from app.settings import Settings
from core import WeightsError, images, networks, weights

PNG = encoded(noise())


def test_the_models_of_the_folder_are_served(live):
    assert live.get("/readyz").json()["model"] == "same"


def test_a_broken_model_stops_the_start_and_is_named(tmp_path, models_dir):
    shutil.copy(models_dir / "same.safetensors", tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    app = create_app(Settings(models_dir=tmp_path, train_dir=tmp_path, device="cpu"))
    with pytest.raises(WeightsError, match=r"broken\.safetensors"), TestClient(app):
        pass


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        values, card = weights.read(path)
        change(values)
        weights.write(path, values, card)

    return write


FIRST = min(name for name, _, _ in networks.unet().param())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncated, "is not a readable safetensors file"),
        (pickled, "is not a readable safetensors file"),
        (changed(lambda values: values.update({FIRST: values[FIRST][..., :1]})), "shape"),
        (changed(lambda values: values.update({FIRST: values[FIRST] + torch.nan})), "holds NaN or infinity"),
        (changed(lambda values: values.pop(FIRST)), FIRST),
    ],
    ids=["truncated", "pickled", "of another shape", "NaN", "a tensor missing"],
)
def test_weights_that_cannot_be_used_stop_the_start_and_the_file_and_its_fault_are_named(tmp_path, models_dir, spoil, words):
    path = tmp_path / "spoilt.safetensors"
    shutil.copy(models_dir / "same.safetensors", path)
    spoil(path)
    app = create_app(Settings(models_dir=tmp_path, train_dir=tmp_path, device="cpu"))
    with pytest.raises(WeightsError, match=rf"spoilt\.safetensors.*{words}"), TestClient(app):
        pass


def test_a_default_model_that_is_not_there_stops_the_start(models_dir, tmp_path):
    app = create_app(Settings(models_dir=models_dir, train_dir=tmp_path, default_model="other", device="cpu"))
    with (
        pytest.raises(UnknownModel, match=r"model = 'other': there is no such model\. There are: 'same'\."),
        TestClient(app),
    ):
        pass


def test_models_made_by_training_are_served_again_after_a_restart(models_dir, tmp_path):
    (tmp_path / "models").mkdir()
    shutil.copy(models_dir / "same.safetensors", tmp_path / "models" / "mine.safetensors")
    with TestClient(create_app(Settings(models_dir=models_dir, train_dir=tmp_path, device="cpu"))) as client:
        assert [each["name"] for each in client.get("/models").json()["models"]] == ["same", "mine"]


FILES = {
    "get /train/{id}/events": "text/event-stream",
    "get /train/{id}/log": "text/plain",
    "get /train/{id}/sample.png": "image/png",
    "get /models/{name}/sample.png": "image/png",
    "get /models/{name}/weights": "application/octet-stream",
}


@pytest.fixture
def schema(serve):
    with serve(Toy()) as client:
        return client.get("/openapi.json").json()


def answers(schema):
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                yield f"{method} {path}", status, answer


def test_the_schema_names_the_service_and_its_doors(schema):
    assert (schema["info"]["title"], schema["info"]["version"]) == ("Clearfold", __version__)
    assert set(schema["paths"]) == {
        "/denoise",
        "/denoise/batch",
        "/livez",
        "/metrics",
        "/models",
        "/models/default",
        "/models/{name}",
        "/models/{name}/sample.png",
        "/models/{name}/weights",
        "/readyz",
        "/train",
        "/train/{id}",
        "/train/{id}/cancel",
        "/train/{id}/events",
        "/train/{id}/log",
        "/train/{id}/resume",
        "/train/{id}/sample.png",
    }


def test_every_answer_is_described_with_its_content_type_and_an_example(schema):
    pictures = {form.media_type for form in images.FORMATS.values()}
    for door, status, answer in answers(schema):
        types = set(answer.get("content", ()))
        if door == "post /denoise" and status == "200":
            assert types == pictures
        elif door == "post /denoise/batch" and status == "200":
            assert types == {"application/zip"}
        elif door == "get /metrics" and status == "200":
            assert types == {MEDIA_TYPE}
        elif status == "204":
            assert types == set()
        elif status == "200" and door in FILES:
            assert types == {FILES[door]}
        elif status.startswith("2"):
            assert types == {"application/json"}, door
            assert shows(schema, answer["content"]["application/json"]["schema"]), door
        else:
            assert types == {PROBLEM_JSON}, (door, status)
            for example in answer["content"][PROBLEM_JSON]["examples"].values():
                assert status in ("default", str(example["value"]["status"]))
                assert set(schema["components"]["schemas"]["Problem"]["required"]) <= set(example["value"])


def shows(schema, shape) -> bool:
    """Whether every property of a shape comes with an example, here or further down."""
    if "$ref" in shape:
        return shows(schema, schema["components"]["schemas"][shape["$ref"].rpartition("/")[2]])
    if "properties" in shape:
        return all(shows(schema, each) for each in shape["properties"].values())
    return "examples" in shape or ("items" in shape and shows(schema, shape["items"]))


def test_every_door_describes_the_failures_that_it_has_of_its_own(schema):
    told = {door: set() for door, _, _ in answers(schema)}
    for door, status, _ in answers(schema):
        told[door].add(status)
    assert all("default" in statuses for statuses in told.values())
    assert told["post /denoise"] >= {"200", "400", "404", "413", "415", "422", "429", "503"}
    assert told["post /train"] >= {"202", "400", "404", "409", "413", "422", "503", "507"}
    assert told["get /train/{id}"] == {"200", "404", "503", "default"}
    assert told["delete /train/{id}"] == {"204", "404", "409", "503", "507", "default"}
    assert told["put /models/{name}"] == {"201", "400", "409", "413", "422", "503", "507", "default"}
    assert told["get /readyz"] == {"200", "503", "default"}


def test_answers_have_a_content_type_that_the_schema_describes(serve, schema):
    with serve(Toy()) as client:
        for method, door, path, options in [
            ("post", "/denoise", "/denoise", {"content": PNG}),
            ("post", "/denoise", "/denoise?format=webp", {"content": PNG}),
            ("post", "/denoise", "/denoise", {"content": b"words"}),
            ("get", "/models", "/models", {}),
            ("get", "/livez", "/livez", {}),
            ("get", "/readyz", "/readyz", {}),
            ("post", "/train", "/train", {}),
            ("get", "/train/{id}", "/train/x", {}),
        ]:
            answer = client.request(method, path, **options)
            described = schema["paths"][door][method]["responses"][str(answer.status_code)]["content"]
            assert answer.headers["content-type"] in described


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_and_all_it_needs_come_from_this_host_without_inline_script(serve, path):
    with serve(Toy()) as client:
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "//" not in page.text.replace("<!doctype html>", "")
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|<style|\sstyle=", page.text)
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith(("default-src 'none'; script-src 'self'; style-src 'self';", "default-src 'self';"))
        assert "unsafe" not in policy
        needed = re.findall(r'(?:src|href)="([^"]+\.\w+)"', page.text)
        assert needed
        for each in needed:
            assert client.get("/" + each).status_code == 200, each


def test_redoc_is_off(serve):
    with serve(Toy()) as client:
        assert client.get("/redoc").status_code == 404


def test_what_is_vendored_comes_with_its_licence():
    assert {"LICENSE", "NOTICE", "VENDORED.md"} <= {path.name for path in (WEB / "docs").iterdir()}


def test_the_service_reaches_core_by_its_front_door_or_by_a_slow_room_when_it_is_needed():
    allowed = r"from core import |\s+from core(\.(trainer|reproduce|evaluation|ranks))? import |import core$"
    for file in WEB.parent.rglob("*.py"):
        for line in re.findall(r"^\s*(?:from|import) core\b.*", file.read_text(), re.MULTILINE):
            assert re.match(allowed, line.strip("\n")), f"{file.name}: {line}"


def test_a_service_that_never_trains_does_not_wait_for_what_jobs_need() -> None:
    told = "import sys, app.main; print([name for name in ('dbos', 'psycopg', 'app.worker') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
