"""The models that were made or brought, in a folder or in a table: one name one model, and no default that is not there."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import catalogue, store
from app.catalogue import Catalogue, InFolder, InTable
from app.errors import JobsAway, ModelExists, ModelInUse, UnknownModel
from app.ledger import Ledger
from app.models import Models
from app.settings import Settings
from core import weights

Fill = Callable[[Path], None]


@pytest.fixture
def fill(models_dir: Path) -> Callable[[str], Fill]:
    """`fill(name)`: the weights of `same` under another name."""

    def named(name: str) -> Fill:
        def write(folder: Path) -> None:
            values, _ = weights.read(models_dir / "same.safetensors")
            weights.save(folder / f"{name}.safetensors", values, {"title": name, "architecture": "unet"})

        return write

    return named


def table(url: str, folder: Path) -> InTable:
    settings = Settings(train_dir=folder, jobs_url=url)
    return InTable(Ledger(url), store.of(settings), catalogue.kept_dir(settings))


@contextmanager
def twice(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[InTable, InTable]]:
    """The same table as two processes have it."""
    url = request.getfixturevalue("database") if kind == "postgresql" else f"sqlite:///{folder}/jobs.sqlite"
    one, other = table(url, folder), table(url, folder)
    yield one, other
    one.close()
    other.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[InTable, InTable]]:
    with twice(request.param, request, tmp_path) as two:
        yield two


@pytest.fixture(params=["folder", "sqlite", "postgresql"])
def shelves(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Catalogue, Catalogue]]:
    if request.param == "folder":
        yield InFolder(tmp_path / "models"), InFolder(tmp_path / "models")
        return
    with twice(request.param, request, tmp_path) as two:
        yield two


@pytest.fixture
def load() -> Iterator[Callable[[Settings], Models]]:
    """As a service does; closed at the end."""
    loaded: list[Models] = []

    def loading(settings: Settings) -> Models:
        loaded.append(Models.load(settings))
        return loaded[-1]

    yield loading
    for models in loaded:
        models.close()


def test_a_model_is_added_found_chosen_and_removed_and_the_other_process_sees_it(shelves, fill):
    one, other = shelves
    assert other.look() == ({}, None)
    one.add("mine", "job", fill("mine"))
    found, _ = other.look()
    assert list(found) == ["mine"]
    assert weights.load(other.weights("mine", found["mine"]))[1]["title"] == "mine"
    one.choose("mine", shipped=False)
    assert other.look() == (found, "mine")
    one.choose(None, shipped=False)
    assert other.look() == (found, None)
    one.remove("mine")
    assert other.look() == ({}, None)
    assert not other.weights("mine", found["mine"]).exists()


def test_a_name_is_taken_once_and_a_job_may_add_its_model_again(shelves, fill, tmp_path):
    one, other = shelves
    one.add("mine", None, fill("mine"))
    files = sorted(path for path in tmp_path.rglob("*.safetensors"))
    with pytest.raises(ModelExists, match="model = 'mine': a model with this name is there, and none is overwritten"):
        other.add("mine", None, fill("mine"))
    with pytest.raises(ModelExists):
        other.add("mine", "job", fill("mine"))
    assert sorted(path for path in tmp_path.rglob("*.safetensors")) == files  # nothing of those that were refused is left


def test_the_same_job_adds_its_model_once(shelves, models_dir, tmp_path):
    def of_a_job(folder: Path) -> None:
        values, _ = weights.read(models_dir / "same.safetensors")
        weights.save(folder / "mine.safetensors", values, {"title": "mine", "architecture": "unet", "job": "a"})

    one, other = shelves
    one.add("mine", "a", of_a_job)
    other.add("mine", "a", of_a_job)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_the_default_of_the_table_is_always_there(tables, fill):
    one, other = tables
    one.add("mine", None, fill("mine"))
    with pytest.raises(UnknownModel):
        other.choose("nobody", shipped=False)
    other.choose("mine", shipped=False)
    with pytest.raises(ModelInUse, match="it is the default model"):
        one.remove("mine")
    other.choose("gaussian", shipped=True)
    one.remove("mine")
    with pytest.raises(UnknownModel):
        other.remove("mine")


def test_what_a_single_machine_had_is_taken_over_by_the_table(tmp_path, models_dir, fill, load):
    single = InFolder(tmp_path / "models")
    single.add("mine", None, fill("mine"))
    single.add("other", None, fill("other"))
    single.choose("mine", shipped=False)
    settings = Settings(models_dir=models_dir, train_dir=tmp_path, jobs_url=f"sqlite:///{tmp_path}/jobs.sqlite", device="cpu")
    for _ in range(2):
        models = load(settings)
        assert [model.name for model in models] == ["same", "mine", "other"]
        assert models.default == "mine"
    assert list((tmp_path / "models").glob("*.*")) == []


def test_while_the_database_is_away_all_stays_as_it_is_and_without_one_nobody_knows_the_default(
    tmp_path, models_dir, fill, database, postgres, monkeypatch, load
):
    settings = Settings(models_dir=models_dir, train_dir=tmp_path, jobs_url=database, device="cpu")
    models = load(settings)
    models._catalogue.add("mine", None, fill("mine"))
    models.refresh()
    models.choose("mine")
    gone = settings.model_copy(update={"jobs_url": database.replace(str(postgres.port), "1")})
    there = models._catalogue
    monkeypatch.setattr(models, "_catalogue", catalogue.of(gone))
    models.refresh()
    assert models[None].name == "mine"
    with pytest.raises(JobsAway):
        models.choose("same")
    fresh = load(gone)
    assert fresh["same"].name == "same"
    with pytest.raises(Exception, match="nobody knows which model is the default"):
        fresh[None]
    monkeypatch.setattr(fresh, "_catalogue", there)
    fresh.refresh()
    assert fresh[None].name == "mine"


def test_a_default_whose_files_cannot_be_had_does_not_replace_the_one_before(tmp_path, models_dir, fill, load):
    settings = Settings(models_dir=models_dir, train_dir=tmp_path, jobs_url=f"sqlite:///{tmp_path}/jobs.sqlite", device="cpu")
    one, other = load(settings), load(settings)
    one._catalogue.add("mine", None, fill("mine"))
    one.refresh()
    one.choose("mine")
    (files,) = (tmp_path / "models").glob("*/")
    shutil.move(files, tmp_path / "aside")
    other.refresh()
    assert other.chosen == "auto"
    shutil.move(tmp_path / "aside", files)
    other.refresh()
    assert other.chosen == "mine"
