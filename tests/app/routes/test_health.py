"""GET /livez and /readyz."""

import pytest
from toys import Toy


def test_a_service_with_a_model_is_alive_and_ready(serve):
    with serve(Toy()) as client:
        assert client.get("/livez").json() == {"status": "live"}
        ready = client.get("/readyz").json()
    assert ready == {"status": "ready", "device": "cpu", "dtype": "float32", "model": "toy"}


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/models", "/web/main.js", "/openapi.json"])
def test_what_can_be_had_can_be_asked_for_without_its_body(serve, path):
    with serve(Toy()) as client:
        whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    unlike = ("date", "x-request-id", "server-timing")
    assert {k: v for k, v in head.headers.items() if k not in unlike} == {k: v for k, v in whole.headers.items() if k not in unlike}


def test_a_head_without_an_end_is_refused(serve):
    with serve(Toy()) as client:
        answer = client.head("/train/00000000/events")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


def test_a_service_without_weights_is_alive_but_not_ready(serve, tmp_path):
    with serve() as client:
        assert client.get("/livez").status_code == 200
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["detail"] == (
        f"models_dir = '{tmp_path / 'models'}' holds no weights: put a model there, or set CLEARFOLD_MODELS_DIR."
    )
