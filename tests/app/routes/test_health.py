"""GET /livez and /readyz."""

from toys import Toy


def test_a_service_with_a_model_is_alive_and_ready(serve):
    with serve(Toy()) as client:
        assert client.get("/livez").json() == {"status": "live"}
        ready = client.get("/readyz").json()
    assert ready == {"status": "ready", "device": "cpu", "dtype": "float32", "model": "toy"}


def test_a_service_without_weights_is_alive_but_not_ready(serve, tmp_path):
    with serve() as client:
        assert client.get("/livez").status_code == 200
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["detail"] == (
        f"models_dir = '{tmp_path / 'models'}' holds no weights: put a model there, or set CLEARFOLD_MODELS_DIR."
    )
