"""GET /models."""

from toys import Toy


def test_every_model_is_listed_with_its_card_in_short_and_one_is_the_default(serve):
    with serve(Toy(name="one"), Toy(name="two")) as client:
        models = client.get("/models").json()["models"]
    assert [(each["name"], each["default"]) for each in models] == [("one", True), ("two", False)]
    assert models[0]["card"] == {"title": "The one", "architecture": "none"}


def test_a_service_without_models_lists_none(serve):
    with serve() as client:
        assert client.get("/models").json() == {"models": []}
