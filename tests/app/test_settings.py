"""What an operator may set."""

from pathlib import Path

import pytest
from pydantic import ValidationError

import core
from app.settings import Settings


def test_the_environment_sets_what_it_names(monkeypatch):
    monkeypatch.setenv("CLEARFOLD_PORT", "9000")
    monkeypatch.setenv("CLEARFOLD_MODELS_DIR", "/models")
    settings = Settings()
    assert (settings.port, settings.models_dir) == (9000, Path("/models"))


def test_the_defaults_serve_the_shipped_models_on_loopback(monkeypatch):
    monkeypatch.delenv("CLEARFOLD_MODELS_DIR", raising=False)
    settings = Settings()
    assert settings.host == "127.0.0.1"
    assert settings.models_dir == Path(core.__file__).parents[1] / "weights"
    assert settings.max_upload_bytes == 32 * 1024 * 1024
    assert settings.max_pixels == 40_000_000


def test_models_that_are_made_are_kept_in_the_users_data(monkeypatch):
    monkeypatch.delenv("CLEARFOLD_TRAIN_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Settings().train_dir == Path("/data/clearfold")


@pytest.mark.parametrize(("name", "value"), [("port", "70000"), ("workers", "0"), ("train_minutes", "nan")])
def test_a_setting_against_its_rule_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(f"CLEARFOLD_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_every_setting_says_what_it_is_for_and_every_limit_names_its_unit():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if name.startswith("max_"):
            assert name.endswith(
                (
                    "_bytes",
                    "_pixels",
                    "_pictures",
                    "_frames",
                    "_scans",
                    "_files",
                    "_batches",
                    "_connections",
                    "_seconds",
                    "_minutes",
                    "_per_megapixel",
                )
            ), name
