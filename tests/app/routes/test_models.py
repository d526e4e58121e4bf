"""/models: listed, told, sent, brought, chosen and taken away."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import safetensors
import torch
from starlette.testclient import TestClient
from toys import Toy, encoded, noise

from app.main import create_app
from app.settings import Settings
from core import networks, weights

PNG = encoded(noise())


@pytest.fixture
def same(models_dir: Path) -> bytes:
    return (models_dir / "same.safetensors").read_bytes()


def put(client: TestClient, name: str, data: bytes):
    return client.put(f"/models/{name}", content=data, headers={"Content-Type": "application/octet-stream"})


def test_every_model_is_listed_with_its_card_in_short_and_one_is_the_default(serve):
    with serve(Toy(name="one"), Toy(name="two")) as client:
        listed = client.get("/models").json()
    assert listed["default"] == "one"
    assert [(each["name"], each["default"]) for each in listed["models"]] == [("one", True), ("two", False)]
    assert listed["models"][0]["card"] == {"title": "The one", "architecture": "none"}


def test_a_service_without_models_lists_none(serve):
    with serve() as client:
        assert client.get("/models").json() == {"default": None, "chosen": "auto", "models": []}
        assert client.get("/models/default").status_code == 503


def test_a_model_is_told_with_its_whole_card_and_sent_as_it_lies_on_the_disk(live, same):
    told = live.get("/models/same").json()
    assert (told["shipped"], told["bytes"], told["card"]) == (True, len(same), {"title": "Same", "architecture": "unet"})
    assert live.get("/models/default").json() == told
    sent = live.get("/models/same/weights")
    assert sent.content == same
    assert 'filename="same.safetensors"' in sent.headers["Content-Disposition"]
    assert live.get("/models/same/sample.png").status_code == 404
    assert live.get("/models/other").json()["detail"] == "model = 'other': there is no such model. There are: 'same'."


def test_a_model_is_brought_chosen_and_taken_away_again(live, same, models_dir, tmp_path):
    brought = put(live, "mine", same)
    assert (brought.status_code, brought.headers["Location"]) == (201, "/models/mine")
    assert (brought.json()["shipped"], brought.json()["default"]) == (False, False)
    assert put(live, "mine", same).status_code == 409
    assert live.put("/models/default", json={"model": "mine"}).json() == {"default": "mine", "previous": "auto"}
    assert live.post("/denoise", content=PNG).headers["X-Clearfold-Model"] == "mine"
    assert live.get("/readyz").json()["model"] == "mine"
    assert live.delete("/models/mine").json()["detail"].startswith("model = 'mine': it is the default model")
    with TestClient(create_app(Settings(models_dir=models_dir, train_dir=tmp_path / "train", device="cpu"))) as later:
        assert later.get("/models").json()["default"] == "mine"
    assert live.put("/models/default", json={"model": "auto"}).json() == {"default": "auto", "previous": "mine"}
    assert live.get("/models").json()["chosen"] == "auto"
    assert live.delete("/models/mine").status_code == 204
    assert [each["name"] for each in live.get("/models").json()["models"]] == ["same"]
    assert [file.name for file in (tmp_path / "train").rglob("*") if file.is_file()] == []


def test_a_shipped_model_is_not_taken_away(live, models_dir):
    assert live.delete("/models/same").status_code == 409
    assert (models_dir / "same.safetensors").exists()
    assert live.put("/models/default", json={"model": "other"}).status_code == 404


def broken(same: bytes, tmp_path: Path) -> dict[str, bytes]:
    path = tmp_path / "same.safetensors"
    path.write_bytes(same)
    values, metadata = weights.read(path)
    name = next(iter(values))

    def written(changed: dict[str, torch.Tensor], card: dict[str, str] = metadata) -> bytes:
        weights.write(path, {**values, **changed}, card)
        return path.read_bytes()

    return {
        "cut short": same[:-100],
        "no weights": b"words",
        "nothing": b"",
        "not finite": written({name: torch.full_like(values[name], float("nan"))}),
        "of another shape": written({name: values[name][..., :1]}),
        "whole numbers": written({name: torch.zeros_like(values[name], dtype=torch.int32)}),
        "with no card": written({}, {}),
        "with a card that is none": written({}, {"card": "[1]"}),
        "of another architecture": written({}, {"card": '{"architecture": "magic"}'}),
        "with a card without end": written({}, {"card": json.dumps(json.loads(metadata["card"]) | {"note": "a" * 1_000_000})}),
    }


def test_what_is_no_model_is_refused_and_leaves_nothing_behind(live, same, tmp_path):
    for what, data in broken(same, tmp_path).items():
        answer = put(live, "mine", data)
        assert (answer.status_code, answer.json()["title"]) == (422, "The weights cannot be used"), what
        assert str(tmp_path) not in answer.json()["detail"], what
    assert put(live, "..", same).status_code in (404, 405, 422)
    assert put(live, "default", same).status_code == 422
    refused = put(live, "auto", same)
    assert (refused.status_code, refused.json()["detail"]) == (
        422,
        "name = 'auto': must be another name: this one has a meaning of its own.",
    )
    assert put(live, "Mine!", same).json()["detail"] == (
        "name = 'Mine!': must be small letters, digits, '.', '_' and '-', a letter or a digit first, at most 63 of them."
    )
    assert [path for path in (tmp_path / "train").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("entry", [{"blind": True, "untold": "abc"}, {"grey_level": "abc"}, {"grey_level": float("nan")}, {"parent": 5}])
def test_a_card_that_tells_nonsense_does_no_harm(live, same, tmp_path, entry):
    path = tmp_path / "same.safetensors"
    path.write_bytes(same)
    values, metadata = weights.read(path)
    weights.write(path, values, {"card": json.dumps(json.loads(metadata["card"]) | entry)})
    brought = put(live, "mine", path.read_bytes())
    assert brought.status_code == (201 if "parent" in entry else 422), brought.text
    assert [each["name"] for each in live.get("/models").json()["models"]] == (["same", "mine"] if "parent" in entry else ["same"])
    assert live.put("/models/default", json={"model": "same"}).status_code == 200


def test_with_a_default_of_the_settings_there_is_no_other_once_none_is_chosen(serve):
    with serve(Toy(name="one"), Toy(name="two"), default_model="two") as client:
        assert client.put("/models/default", json={"model": "one"}).json() == {"default": "one", "previous": "two"}
        assert client.put("/models/default", json={"model": "auto"}).json() == {"default": "two", "previous": "one"}


def test_weights_larger_than_the_limit_are_refused_as_they_arrive(serve, same):
    with serve(Toy(), max_model_bytes=1000) as client:
        answer = put(client, "mine", same)
    assert (answer.status_code, answer.json()["limit"]) == (413, {"max_model_bytes": 1000})


def test_models_and_the_default_that_another_process_changes_are_seen(models_dir, same, tmp_path):
    settings = Settings(models_dir=models_dir, train_dir=tmp_path / "train", device="cpu")
    with TestClient(create_app(settings)) as one, TestClient(create_app(settings)) as other:
        put(one, "mine", same)
        one.put("/models/default", json={"model": "mine"})
        other.portal.call(lambda: None)
        other.app_state["models"].refresh()
        assert other.get("/models").json() == one.get("/models").json()
        assert other.get("/models").json()["default"] == "mine"


def test_no_request_fails_or_mixes_models_while_the_default_changes(live, same, tmp_path):
    """Two models that answer a flat grey with black and with white: any other answer would be a mixture."""
    for name, value in (("black", -1.0), ("white", 1.0)):
        network = networks.unet()
        values = {p.name: torch.zeros_like(p.value) for p in network.param()}
        last = [p.name for p in network.param() if p.name.endswith("bias")][-1]
        values[last] += value
        weights.save(tmp_path / f"{name}.safetensors", values, {"title": name, "architecture": "unet"})
        assert put(live, name, (tmp_path / f"{name}.safetensors").read_bytes()).status_code == 201
    with safetensors.safe_open(tmp_path / "white.safetensors", framework="pt") as file:
        assert file.metadata()
    grey = encoded(noise().point(lambda _: 128))
    answers: dict[str, bytes] = {}
    for name in ("black", "white"):
        answers[name] = live.post(f"/denoise?model={name}&sigma=10", content=grey).content
    assert answers["black"] != answers["white"]
    wrong: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answer = live.post("/denoise?sigma=10", content=grey)
            name = answer.headers.get("X-Clearfold-Model", "")
            if answer.status_code != 200 or (name != "same" and answers.get(name) != answer.content):
                wrong.append(f"{answer.status_code} {name}")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(20):
        assert live.put("/models/default", json={"model": ("black", "white")[turn % 2]}).status_code == 200
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("body", "type", "told"),
    [
        (b'{"model": "same"}', None, "body: send a JSON object, with Content-Type: application/json, such as %s."),
        (b'["same"]', "application/json", "body: send a JSON object, with Content-Type: application/json, such as %s."),
        (b"", "application/json", "body: send a JSON object, with Content-Type: application/json, such as %s."),
        (b"{'model': 'same'}", "application/json", "body: it is no JSON (Expecting property name enclosed in double quotes): "
         "send an object such as %s."),
        (b'{"model": "same", "name": "x"}', "application/json", "name = 'x': there is no such field. There are: model."),
        (b'{"model": 5}', "application/json", "model: Input should be a valid string."),
    ],
)  # fmt: skip
def test_a_choice_that_is_none_is_told_what_one_looks_like(live, body, type, told):
    answer = live.put("/models/default", content=body, headers={"Content-Type": type} if type else {})
    assert answer.status_code == 422
    assert answer.json()["detail"] == told.replace("%s", '{"model": "my-scanner"}')


def test_a_wish_that_no_door_of_these_has_is_not_passed_over_in_silence(live, same):
    answer = live.put("/models/mine?activate=always", content=same)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "activate = 'always': there is no such parameter. There are: none."


@pytest.mark.parametrize("folder", ["models", "train/models"])
def test_a_file_under_a_name_with_a_meaning_of_its_own_is_left_out_and_told_once(models_dir, tmp_path, caplog, folder):
    (tmp_path / folder).mkdir(parents=True)
    for name in ("auto", "default", "good"):
        shutil.copy(models_dir / "same.safetensors", tmp_path / folder / f"{name}.safetensors")
    settings = Settings(models_dir=tmp_path / "models", train_dir=tmp_path / "train", device="cpu")
    with TestClient(create_app(settings)) as client:
        assert [each["name"] for each in client.get("/models").json()["models"]] == ["good"]
        assert client.get("/models/default").json()["name"] == "good"
        client.app_state["models"].refresh()
    assert [told for told in caplog.messages if "is not served" in told] == [
        f"{name}.safetensors is not served: this name has a meaning of its own: give the file another" for name in ("auto", "default")
    ]
