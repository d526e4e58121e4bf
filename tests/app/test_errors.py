"""Every kind of failure, told in one shape."""

import json

import pytest
from toys import Gate, Toy, encoded, noise

from app import errors
from app.errors import PROBLEM_JSON, NotEnded, Problem
from app.jobs import Jobs

PNG = encoded(noise())
FILES = [("files", ("a.png", PNG))]


def broken(pixels, sigma, keep_going):
    raise RuntimeError("a secret of the inside")


def busy(*args, **options):
    raise NotEnded(NotEnded.example)


FAILURES = {
    "a form that is none": (
        400,
        "post",
        "/denoise",
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
    ),
    "an unknown path": (404, "get", "/nowhere", {}),
    "an unknown file of the pages": (404, "get", "/web/nothing.js", {}),
    "an unknown model": (404, "post", "/denoise?model=none", {"content": PNG}),
    "an unknown job": (404, "get", "/train/none", {}),
    "a wrong method": (405, "get", "/denoise", {}),
    "a job while another runs": (409, "post", "/train", {"files": FILES}),
    "too many bytes": (413, "post", "/denoise", {"content": bytes(5000)}),
    "too many bytes in a form": (413, "post", "/train", {"files": [("files", ("a.png", bytes(5000)))]}),
    "no picture": (415, "post", "/denoise", {"content": b"words"}),
    "a broken picture": (422, "post", "/denoise", {"content": PNG[:99]}),
    "a number that is none": (422, "post", "/denoise?strength=nan", {"content": PNG}),
    "a number beyond all": (422, "post", "/denoise?strength=1e999", {"content": PNG}),
    "a missing field": (422, "post", "/train", {}),
    "a fault of ours": (500, "post", "/denoise?model=broken", {"content": PNG}),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_has_the_one_shape(serve, monkeypatch, failure):
    monkeypatch.setattr(Jobs, "start", busy)
    status, method, path, options = FAILURES[failure]
    with serve(Toy(), Toy(broken, name="broken"), max_upload_bytes=4000, max_train_upload_bytes=4000) as client:
        assert_shape(client.request(method, path, **options), status, path)


def test_a_full_queue_has_the_one_shape(serve):
    with serve(Toy(Gate()), workers=1, max_queued_pictures=0) as client:
        client.app_state["workers"]._admitted = 1
        assert_shape(client.post("/denoise", content=PNG), 429, "/denoise")


@pytest.mark.parametrize("path", ["/readyz", "/denoise"])
def test_a_service_that_is_not_ready_has_the_one_shape(serve, path):
    with serve() as client:
        assert_shape(client.get(path) if path == "/readyz" else client.post(path, content=PNG), 503, path)


def assert_shape(answer, status, path):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM_JSON
    problem = json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert problem["status"] == status
    assert problem["instance"] == path.partition("?")[0]
    assert problem["type"] == "about:blank" or problem["type"].startswith("urn:clearfold:problem:")
    assert problem["title"]
    assert problem["detail"]
    assert "secret" not in answer.text


def test_a_wrong_method_names_the_right_ones(serve):
    with serve(Toy()) as client:
        assert client.get("/denoise").headers["Allow"] == "POST"
        assert client.post("/models/toy").headers["Allow"] == "DELETE, GET, HEAD, PUT"


def test_a_value_against_its_rule_is_named_for_machines_too(serve):
    with serve(Toy()) as client:
        problem = client.post("/denoise?strength=inf&quality=0", content=PNG).json()
    assert [(each["name"], each["in"]) for each in problem["errors"]] == [("strength", "query"), ("quality", "query")]


def test_a_slash_too_many_is_told_and_not_led_on(serve):
    with serve(Toy()) as client:
        answer = client.post("/denoise/", content=PNG, follow_redirects=False)
        assert_shape(answer, 404, "/denoise/")
        assert answer.json()["detail"] == "Nothing lives at /denoise/: ask for /denoise, without the slash behind it."
        assert client.get("/nowhere/").json()["detail"] == "Nothing lives at /nowhere/: see /docs for what does."


def kinds(kind: type[Problem] = Problem) -> list[type[Problem]]:
    return [below for each in kind.__subclasses__() for below in (each, *kinds(each))]


def test_the_tree_at_the_head_of_the_file_is_the_tree():
    drawn = [line.split("──")[1].split()[0] for line in errors.__doc__.splitlines() if "──" in line]
    assert drawn == [kind.__name__ for kind in kinds()]


def test_every_kind_has_a_type_of_its_own_and_an_example():
    assert len({kind.type() for kind in kinds()}) == len(kinds())
    assert errors.UnknownModel.type() == "urn:clearfold:problem:unknown-model"
    assert all(kind.example and kind.title for kind in kinds())
