"""The training loop: what it writes, that it goes on to the very same bits, and that nothing good is lost when it fails."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from core import DataError, Denoiser, DeviceError, WeightsError, ahead, hardware, kernels, metrics, networks, noise, trainer, weights
from core.nn import LogMSE, scaling
from core.trainer import Progress, Recipe, TrainingError
from tests.core.made import flat, photo, refused, save, small, small_gated


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        save(folder / f"{i}.png", photo(24 + i, 30, seed=i))
    return folder


Make = Callable[..., Recipe]


@pytest.fixture
def recipe(photos: Path, tmp_path: Path) -> Make:
    """A recipe of a few small steps; `recipe(steps=3)` changes what is named."""

    def make(**changed: Any) -> Recipe:
        plain: dict[str, Any] = {"data": (photos,), "out": tmp_path / "run" / "m.safetensors", "steps": 6, "batch": 2, "patch": 16}
        return Recipe(**{**plain, "warm_up": 2, "evaluate_every": 100, "device": "cpu", "dtype": "float32", **changed})

    return make


def run(recipe: Recipe, resume: bool = False) -> list[Progress]:
    told: list[Progress] = []
    trainer.train(recipe, told.append, resume=resume)
    return told


def run_until(step: int, recipe: Recipe) -> list[Progress]:
    """`stop` is asked after a step is done and before it is told."""
    done = 0

    def stop() -> bool:
        nonlocal done
        done += 1
        return done == step

    told: list[Progress] = []
    trainer.train(recipe, told.append, stop)
    return told


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def breaking_at(step: int, value: float) -> type[LogMSE]:
    """A LogMSE whose loss is `value` at the call of that number, counted from 0."""

    class Breaking(LogMSE):
        calls = 0

        def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            return torch.tensor(value) if self.calls == step + 1 else super().forward(prediction, target)

    return Breaking


def test_a_run_of_the_shipped_architecture_writes_weights_card_and_checkpoint(recipe: Make) -> None:
    it = recipe(steps=2)
    told: list[Progress] = []
    assert trainer.train(it, told.append) == it.out
    assert sorted(file.name for file in it.out.parent.iterdir()) == ["m.checkpoint", "m.md", "m.safetensors"]
    assert [(p.step, p.steps, p.psnr is None) for p in told] == [(1, 2, True), (2, 2, False)]
    denoiser = Denoiser.load(it.out, "cpu", "float32")
    quality = denoiser.card["quality"]
    assert quality.pop("trained") == round(told[-1].psnr or 0, 3)
    assert quality.pop("before") == pytest.approx(20, abs=0.5)  # sigma 25, some of it clipped by no one
    assert denoiser.card == {
        "title": "m",
        "architecture": "unet",
        "summary": "Removes white Gaussian noise of a known or estimated level from photographs.",
        "grey_level": 1.7321,
        "multiply_adds_a_pixel": 196544,
        "weights": 4177740,
        "data": [it.data[0].name],
        "method": "clean",
        "note": "The pictures were taken as free of noise; the model is for the noise that was put on them.",
        "quality": {"what": "PSNR in dB at sigma 25 in 8-bit steps", "parent": None, "better": quality["better"]},
        "recipe": {
            "steps": "2 of 2",
            "pixels": 2 * 2 * 16 * 16,
            "batch": "2 of 16x16",
            "loss": "LogMSE",
            "optimiser": "Muon 0.001, warm-up over 2 steps, linear decay, moving average 0.999, derivatives clipped to 0.3",
            "noise": "Gaussian, sigma 0 to 55 in 8-bit steps, uniform",
            "started from": "random weights",
            "seed": 0,
        },
        "figures": {},
    }
    assert it.out.with_suffix(".md").read_text() == weights.card_text(weights.load(it.out)[1])
    started = {p.name: p.value for p in networks.unet(torch.Generator().manual_seed(0)).param()}
    assert all(not torch.equal(p.value, started[p.name].half().float()) for p in denoiser.network.param())


def test_pictures_without_noise_have_a_figure_all_the_same(photos: Path, recipe: Make) -> None:
    """What is infinite is no JSON."""
    flat_of = recipe(sigma=(0.0, 0.0))
    assert trainer._Clean(flat_of, None, torch.device("cpu")).measure(lambda noisy, level: noisy) == trainer.HIGHEST


@pytest.mark.usefixtures("small_unet")
class TestOnASmallNetwork:
    def test_a_run_that_was_stopped_goes_on_to_the_very_same_bits(self, recipe: Make, tmp_path: Path) -> None:
        whole, parts = (recipe(out=tmp_path / name / "m.safetensors") for name in ("whole", "parts"))
        losses = [p.loss for p in run(whole)]
        first = [p.loss for p in run_until(3, parts)]
        second = run(parts, resume=True)
        assert len(set(losses)) == 6
        assert first == losses[:3]
        assert [p.loss for p in second] == losses[3:]
        assert [p.step for p in second] == [4, 5, 6]
        assert_same_tensors(load_file(parts.out), load_file(whole.out))
        assert weights.read(parts.out)[1] == weights.read(whole.out)[1]
        assert_same_tensors(load_file(parts.checkpoint), load_file(whole.checkpoint))

    def test_so_does_one_that_learns_from_noisy_pictures_with_coarser_factors(
        self, recipe: Make, tmp_path: Path, generator: torch.Generator
    ) -> None:
        """Whose first batch asks the network before it was trained on."""
        for number in range(3):
            save(tmp_path / "noisy" / f"{number}.png", photo(96, 104) + 0.1 * torch.randn(96, 104, 3, generator=generator))
        it = {"data": (tmp_path / "noisy",), "method": "noisy", "dtype": "bfloat16", "steps": 4}
        whole, parts = (recipe(out=tmp_path / name / "m.safetensors", **it) for name in ("whole", "parts"))
        losses = [p.loss for p in run(whole)]
        assert [p.loss for p in run_until(2, parts)] == losses[:2]
        assert [p.loss for p in run(parts, resume=True)] == losses[2:]

    def test_a_run_resumed_at_its_end_has_nothing_to_do(self, recipe: Make) -> None:
        run(recipe())
        before = contents(recipe().out.parent)
        assert run(recipe(), resume=True) == []
        assert contents(recipe().out.parent) == before

    @pytest.mark.parametrize(
        ("name", "value", "asked", "kept"),
        [
            ("batch", 3, "3", "2"),
            ("patch", 24, "24", "16"),
            ("sigma", (0.0, 0.1), "[0.0, 0.1]", "[0.0, 0.21568627450980393]"),
            ("lr", 2e-3, "0.002", "0.001"),
            ("warm_up", 3, "3", "2"),
            ("average", 0.9, "0.9", "0.999"),
            ("seed", 1, "1", "0"),
            ("evaluate_every", 50, "50", "100"),
            ("dtype", "bfloat16", "bfloat16", "float32"),
            ("architecture", "gated", "gated", "unet"),
        ],
    )
    def test_another_recipe_cannot_be_resumed(self, recipe: Make, name: str, value: object, asked: str, kept: str) -> None:
        run_until(1, recipe())
        before = contents(recipe().out.parent)
        message = f"{name} (={asked}) differs from the checkpoint's (={kept}): resume with the same, or start anew"
        with refused(TrainingError, message):
            run(recipe(**{name: value}), resume=True)
        assert contents(recipe().out.parent) == before

    def test_where_the_files_lie_and_how_often_they_are_written_may_change(self, recipe: Make, tmp_path: Path) -> None:
        run_until(1, recipe())
        recipe().out.parent.rename(tmp_path / "moved")
        told = run(recipe(out=tmp_path / "moved" / "m.safetensors", checkpoint_seconds=5.0), resume=True)
        assert [p.step for p in told] == [2, 3, 4, 5, 6]

    def test_a_run_may_be_made_longer(self, recipe: Make) -> None:
        run(recipe(steps=3))
        told = run(recipe(steps=5), resume=True)
        assert [(p.step, p.steps) for p in told] == [(4, 5), (5, 5)]
        assert Denoiser.load(recipe().out).card["recipe"]["steps"] == "5 of 5"

    def test_there_must_be_something_to_resume(self, recipe: Make) -> None:
        with refused(TrainingError, f"{recipe().checkpoint} does not exist: there is nothing to resume, start anew"):
            run(recipe(), resume=True)

    def test_a_broken_checkpoint_is_named(self, recipe: Make) -> None:
        run_until(1, recipe())
        recipe().checkpoint.write_bytes(recipe().checkpoint.read_bytes()[:1000])
        with pytest.raises(WeightsError, match=rf"^{recipe().checkpoint} is not a readable safetensors file"):
            run(recipe(), resume=True)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_loss_that_is_no_number_stops_and_keeps_what_was_saved(
        self, recipe: Make, monkeypatch: pytest.MonkeyPatch, value: float
    ) -> None:
        it = recipe(evaluate_every=2)
        run_until(2, it)
        before = contents(it.out.parent)
        monkeypatch.setattr(trainer, "LogMSE", breaking_at(1, value))
        told: list[Progress] = []
        message = f"the loss is {value} at step 3: lower lr (=0.001) and start from {it.out} (initial), which holds the weights of step 2"
        with refused(TrainingError, message):
            trainer.train(it, told.append, resume=True)
        assert [p.step for p in told] == [3]
        assert contents(it.out.parent) == before

    def test_a_first_loss_that_is_no_number_leaves_no_file(self, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trainer, "LogMSE", breaking_at(0, math.nan))
        with refused(TrainingError, "the loss is nan at step 0: lower lr (=0.001) and start anew: nothing was saved yet"):
            run(recipe())
        assert not recipe().out.parent.exists()

    def test_weights_that_broke_in_the_very_last_step_are_not_saved(self, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        run_until(2, recipe())
        before = contents(recipe().out.parent)

        class Breaking(LogMSE):
            def backward(self, prediction: Tensor, target: Tensor) -> Tensor:
                return super().backward(prediction, target) * math.nan

        monkeypatch.setattr(trainer, "LogMSE", Breaking)
        told: list[Progress] = []
        with pytest.raises(TrainingError, match=r"^a weight is NaN or infinite at step 3: lower lr .* the weights of step 2\Z"):
            trainer.train(recipe(), told.append, lambda: True, resume=True)
        assert contents(recipe().out.parent) == before

    def test_a_checkpoint_is_written_after_so_many_seconds(self, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter(range(0, 1000, 10))
        monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))  # not that of who reads the pictures
        saved: list[int] = []
        save = trainer._Run.save
        monkeypatch.setattr(trainer._Run, "save", lambda run, recipe: (saved.append(run.step), save(run, recipe))[1])
        run(recipe(checkpoint_seconds=15.0))  # a step takes 10 s by this clock
        assert saved == [2, 4, 6]

    def test_it_is_measured_and_saved_every_so_often_and_at_the_end(self, recipe: Make) -> None:
        told = run(recipe(steps=5, evaluate_every=2))
        assert [p.step for p in told if p.psnr is not None] == [2, 4, 5]

    def test_stop_saves(self, recipe: Make) -> None:
        told = run_until(2, recipe())
        assert [p.step for p in told] == [1, 2]
        assert told[-1].psnr is not None
        assert weights.read(recipe().checkpoint)[1]["step"] == "2"
        assert Denoiser.load(recipe().out).card["recipe"]["steps"] == "2 of 6"

    def test_pace_and_time_left_are_by_the_clock(self, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter(range(0, 1000, 10))
        monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))  # not that of who reads the pictures
        told = run(recipe(steps=4))
        assert [p.seconds_left for p in told] == [30.0, 20.0, 10.0, 0.0]
        assert {p.pixels_per_second for p in told} == {2 * 16 * 16 / 10}

    def test_so_many_steps_fit_as_the_pace_of_a_few_says_with_a_tenth_left_for_measuring(
        self, recipe: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = iter([0.0] + [10.0 + 2.0 * step for step in range(trainer.TRIAL_STEPS)])  # the first step comes late and is not counted
        last = [0.0]

        def now() -> float:
            last[0] = next(clock, last[0])
            return last[0]

        def trial(short: Recipe, stop: Callable[[], bool]) -> None:
            assert (short.steps, short.cleaner) == (trainer.TRIAL_STEPS, None)
            for _ in range(short.steps):
                assert not stop()

        monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=now))
        monkeypatch.setattr(trainer, "train", trial)
        assert trainer.steps_within(recipe(cleaner=Path("none")), 218.0) == (218 - 18) * 0.9 / 2

    def test_one_step_fits_where_there_is_no_time_and_nothing_is_left_behind(self, recipe: Make) -> None:
        assert trainer.steps_within(recipe(), 0.0) == 1
        assert not recipe().out.parent.exists()

    def test_the_steps_of_a_run_are_those_it_was_planned_with(self, recipe: Make) -> None:
        with refused(TrainingError, f"{recipe().checkpoint} does not exist: there is nothing to resume, start anew"):
            trainer.planned_steps(recipe())
        run_until(2, recipe(steps=5))
        assert trainer.planned_steps(recipe(steps=9)) == 5

    def test_what_is_measured_is_the_averaged_weights_on_the_validation_pictures(self, recipe: Make, photos: Path) -> None:
        it = recipe(validation=photos, data=(photos,))
        with pytest.raises(DataError):
            run(it)  # nothing would be left to train on
        folder = it.out.parent / "apart"
        clean = [(photo(16, 24, seed=9 + i) * 255).round() / 255 for i in range(2)]
        for i, picture in enumerate(clean):
            save(folder / f"{i}.png", picture)
        told = run(recipe(validation=folder))
        denoiser = Denoiser.load(it.out, "cpu", "float32")
        scores = [
            metrics.psnr(metrics.to_8bit(denoiser(noise.add_gaussian(c, 25 / 255, trainer.data.generator_of(0, i)), 25 / 255)), c)
            for i, c in enumerate(clean)
        ]
        assert told[-1].psnr == pytest.approx(sum(scores) / 2, abs=0.02)  # the file's weights are in half precision

    def test_the_same_seed_gives_the_same_run_and_another_does_not(self, recipe: Make) -> None:
        one, same, other = ([p.loss for p in run(recipe(seed=seed, steps=3))] for seed in (5, 5, 6))
        assert one == same
        assert not set(one) & set(other)

    def test_in_bfloat16_the_master_weights_stay_in_float32(self, recipe: Make) -> None:
        own = kernels.take(torch.bfloat16, torch.device("cpu"))
        finer = own is not None and own.factors == torch.float32  # kernels of a processor without bfloat16 multiply in float32
        coarse = run(recipe(dtype="bfloat16", steps=3))
        stored = load_file(recipe().checkpoint)
        assert {value.dtype for value in stored.values()} == {torch.float32}
        fine = run(recipe(steps=3))
        for a, b in zip(coarse, fine, strict=True):
            assert a.loss == pytest.approx(b.loss, rel=0.02)
            assert (a.loss == b.loss) == finer

    @pytest.mark.usefixtures("float16_kernels")
    def test_in_float16_it_learns_what_it_does_in_float32_and_goes_on_to_the_same_bits(self, recipe: Make) -> None:
        coarse = run(recipe(dtype="float16", steps=5))
        stored = load_file(recipe().checkpoint)
        assert {value.dtype for value in stored.values()} == {torch.float32}
        for a, b in zip(coarse, run(recipe(steps=5)), strict=True):
            assert a.loss == pytest.approx(b.loss, rel=0.01)
            assert a.loss != b.loss
        begun = run_until(2, recipe(dtype="float16", steps=5))
        went_on = run(recipe(dtype="float16", steps=5), resume=True)
        assert [p.loss for p in (*begun, *went_on)] == [p.loss for p in coarse]
        assert all(torch.equal(value, stored[name]) for name, value in load_file(recipe().checkpoint).items())

    @pytest.mark.usefixtures("float16_kernels")
    def test_a_step_that_overflows_float16_is_computed_in_float32(self, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        fine = [p.loss for p in run(recipe(steps=3))]
        monkeypatch.setattr(scaling, "LARGEST", 1e6)
        assert [p.loss for p in run(recipe(dtype="float16", steps=3))] == fine

    @pytest.mark.usefixtures("float16_kernels")
    def test_a_network_whose_pictures_overflow_float16_is_trained_and_measured_in_float32(self, recipe: Make, tmp_path: Path) -> None:
        loud = {p.name: p.value for p in small(torch.Generator().manual_seed(3)).param()}
        first, last = [name for name, value in loud.items() if value.dim() == 4][:: len([v for v in loud.values() if v.dim() == 4]) - 1]
        loud[first], loud[last] = loud[first] * 1e5, loud[last] / 1e5
        weights.save(tmp_path / "loud.safetensors", loud, {"architecture": "unet"})
        given = {"initial": tmp_path / "loud.safetensors", "steps": 2, "evaluate_every": 2}
        fine, coarse = run(recipe(**given)), run(recipe(dtype="float16", **given))
        assert [(p.loss, p.psnr) for p in coarse] == [(p.loss, p.psnr) for p in fine]

    def test_the_first_step_moves_no_weight_further_than_its_warm_learning_rate(self, recipe: Make) -> None:
        run_until(1, recipe(lr=0.01, warm_up=4))
        now = load_file(recipe().checkpoint)
        moved = [(now[f"now.{p.name}"] - p.value).abs().max() for p in small(torch.Generator().manual_seed(0)).param()]
        assert max(moved).item() == pytest.approx(0.01 / 4, rel=1e-3)  # Adam's first step is the learning rate itself

    def test_derivatives_are_clipped_before_the_weights_move(self, recipe: Make) -> None:
        whole = run(recipe(clip=1e9, steps=2))
        assert run(recipe(clip=1e-30, steps=2))[1].loss != whole[1].loss  # so short that Adam's epsilon keeps the weights where they are

    def test_the_moving_average_is_of_all_weights_so_far(self, recipe: Make) -> None:
        run_until(1, recipe())
        first = load_file(recipe().checkpoint)
        started = {p.name: p.value for p in small(torch.Generator().manual_seed(0)).param()}
        trained = trainer.train(recipe(), stop=lambda: True, resume=True)
        second, written = load_file(recipe().checkpoint), load_file(trained)
        for name, w0 in started.items():
            average = 0.1 * w0 + 0.9 * first[f"now.{name}"]
            torch.testing.assert_close(first[f"average.{name}"], average)
            average = 2 / 11 * average + 9 / 11 * second[f"now.{name}"]
            torch.testing.assert_close(second[f"average.{name}"], average)
            assert torch.equal(written[name], second[f"average.{name}"].half())

    def test_the_average_is_never_longer_than_asked(self, recipe: Make) -> None:
        run_until(1, recipe(average=0.0))
        stored = load_file(recipe().checkpoint)
        for name in stored:
            if name.startswith("now."):
                assert torch.equal(stored[name], stored[name.replace("now.", "average.")])

    def test_it_starts_from_the_weights_it_is_given(self, recipe: Make, tmp_path: Path) -> None:
        given = {p.name: p.value for p in small(torch.Generator().manual_seed(77)).param()}
        weights.save(tmp_path / "given.safetensors", given, {"architecture": "unet"})
        path = trainer.train(recipe(initial=tmp_path / "given.safetensors", lr=1e-9), stop=lambda: True)
        written = load_file(path)
        for name, value in given.items():
            torch.testing.assert_close(written[name].float(), value, atol=1e-3, rtol=0)
        assert weights.load(path)[1]["recipe"]["started from"] == "given.safetensors"

    def test_initial_weights_that_are_not_there_are_named(self, recipe: Make, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=rf"^{tmp_path / 'none.safetensors'} does not exist"):
            run(recipe(initial=tmp_path / "none.safetensors"))

    def test_an_unknown_precision_is_refused(self, recipe: Make) -> None:
        with refused(DeviceError, 'dtype = "int8" must be one of "auto", "float32", "bfloat16", "float16"'):
            run(recipe(dtype="int8"))

    def test_a_gpu_that_is_not_there_is_refused(self, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.raises(DeviceError, match=r'^device = "cuda" needs a CUDA GPU'):
            run(recipe(device="cuda"))

    @pytest.mark.parametrize("validation", [None, "apart"])
    def test_pictures_for_validation_are_not_trained_on(
        self, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: str | None
    ) -> None:
        folder = tmp_path / "levels"
        apart = range(200, 230, 10)  # in a folder inside the other
        for level in (*range(10, 200, 10), *apart):
            save(folder / ("apart" if level in apart else "") / f"{level:03}.png", flat(level))
        trained: set[int] = set()
        measured: set[int] = set()
        batch, add = trainer.data.Photographs.batch, noise.add_gaussian

        def watched(photographs: Any, size: int, generator: torch.Generator) -> Tensor:
            trained.update(int(picture[0, 0, 0]) for picture in photographs.pictures)
            return batch(photographs, size, generator)

        def noted(clean: Tensor, sigma: Any, generator: torch.Generator) -> Tensor:
            if clean.dim() == 3:
                measured.add(round(clean[0, 0, 0].item() * 255))
            return add(clean, sigma, generator)

        monkeypatch.setattr(trainer.data.Photographs, "batch", watched)
        monkeypatch.setattr(trainer.noise, "add_gaussian", noted)
        run(recipe(data=(folder,), validation=folder / validation if validation else None, steps=1))
        assert trained | measured == set(range(10, 230, 10))
        assert not trained & measured
        assert len(measured) == 3  # all there are apart, or one in eight of 22
        if validation:
            assert measured == set(apart)

    @pytest.mark.parametrize(("count", "held"), [(2, 1), (8, 1), (9, 2), (40, 5), (90, 8)])
    def test_one_picture_in_eight_is_held_out_and_eight_at_most(self, recipe: Make, tmp_path: Path, count: int, held: int) -> None:
        for i in range(count):
            save(tmp_path / "many" / f"{i:02}.png", flat(i, 16))
        training, validation = trainer._pictures(recipe(data=(tmp_path / "many",)))
        assert (len(training.pictures), len(validation)) == (count - held, held)

    def test_of_many_validation_pictures_twelve_are_measured(self, recipe: Make, tmp_path: Path) -> None:
        for i in range(40):
            save(tmp_path / "apart" / f"{i:02}.png", flat(i, 8))
        _, validation = trainer._pictures(recipe(validation=tmp_path / "apart"))
        assert len(validation) == 12
        assert len({picture[0, 0, 0].item() for picture in validation}) == 12

    def test_validation_pictures_are_cut_to_what_the_network_takes(self, recipe: Make, tmp_path: Path) -> None:
        save(tmp_path / "apart" / "a.png", photo(21, 30))
        save(tmp_path / "apart" / "too-small.png", photo(7, 30))
        _, validation = trainer._pictures(recipe(validation=tmp_path / "apart"))
        assert [tuple(picture.shape) for picture in validation] == [(16, 24, 3)]
        torch.testing.assert_close(validation[0], photo(21, 30)[:16, :24], atol=0.51 / 255, rtol=0)

    def test_a_cleaner_rids_the_training_pictures_of_their_grain_and_no_other(self, recipe: Make, photos: Path) -> None:
        def cleaner(noisy: Tensor, level: Tensor | float) -> Tensor:
            assert level == trainer.GRAIN
            return 2 * noisy - 1  # some of it outside of [0, 1]

        (before, held), (after, still_held) = (trainer._pictures(recipe(data=(photos,)), by) for by in (None, cleaner))
        assert len(after.pictures) == 3
        for grainy, clean in zip(before.pictures, after.pictures, strict=True):
            H, W = (size // 8 * 8 for size in grainy.shape[:2])
            torch.testing.assert_close(clean.float(), (2 * grainy[:H, :W].float() - 255).clamp(0, 255))
        assert all(torch.equal(one, other) for one, other in zip(held, still_held, strict=True))

    def test_the_cleaners_weights_are_in_the_card(self, recipe: Make, tmp_path: Path) -> None:
        run(first := recipe(out=tmp_path / "first.safetensors", steps=1))
        run(second := recipe(steps=1, cleaner=first.out))
        assert weights.load(second.out)[1]["recipe"]["cleaned by"] == "first.safetensors, told 6 in 8-bit steps"

    @pytest.mark.parametrize("count", [0, 1])
    def test_two_pictures_are_needed(self, recipe: Make, tmp_path: Path, count: int) -> None:
        (tmp_path / "few").mkdir()
        for i in range(count):
            save(tmp_path / "few" / f"{i}.png", photo(20, 20))
        message = f"{tmp_path / 'few'}: two pictures are needed at least, one to train on and one to validate on"
        with refused(DataError, message):
            run(recipe(data=(tmp_path / "few",)))

    def test_validation_pictures_that_are_all_too_small_are_refused_before_training(self, recipe: Make, tmp_path: Path) -> None:
        save(tmp_path / "apart" / "a.png", photo(7, 30))
        with pytest.raises(DataError, match="one to validate on"):
            run(recipe(validation=tmp_path / "apart"))

    def test_a_batch_has_a_level_of_noise_a_picture_within_the_range(self, recipe: Make) -> None:
        it = recipe(sigma=(0.1, 0.3), batch=200, steps=2)
        pictures, _ = trainer._pictures(it)
        batches = list(trainer._batches(it, pictures, 0))
        assert len(batches) == 2
        for noisy, clean, sigma in batches:
            assert noisy.shape == clean.shape == (200, 16, 16, 3)
            assert sigma.shape == (200, 1, 1, 1)
            grey = (clean == clean[..., :1]).flatten(1).all(1)
            added = torch.where(grey, sigma.flatten() / noise.GREY_LEVEL, sigma.flatten())
            assert 0.1 - 1e-6 <= added.min() < 0.11 < 0.29 < added.max() <= 0.3 + 1e-6
            measured = (noisy - clean).std((1, 2, 3))
            assert ((measured / added - 1).abs() < 0.15).all()
        later = list(trainer._batches(it, pictures, 1))
        assert len(later) == 1
        assert all(torch.equal(a, b) for a, b in zip(later[0], batches[1], strict=True))

    @pytest.mark.skipif(not ahead.possible(), reason="processes can't start as copies of this one here")
    def test_a_cameras_noise_is_the_same_whoever_makes_it(self, recipe: Make) -> None:
        it = recipe(photographic=0.5, batch=6, steps=5)
        pictures, _ = trainer._pictures(it)
        with hardware.on_one_thread():  # as the processes compute
            here = list(trainer._batches(it, pictures, 1))
        count = 0
        for own, others in zip(here, trainer._batches(it, pictures, 1, processes=2), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))
            count += 1
        assert count == 4

    def test_in_grey_alone_it_learns_and_is_measured_in_grey(self, recipe: Make) -> None:
        source = trainer._Clean(recipe(grey=1.0, batch=20, steps=1), None, torch.device("cpu"))
        (noisy, clean, sigma), *_ = source.batches(0, lambda noisy, level: noisy, slice(None))
        pictures = [noisy, clean, *source.validation, *(source._noisy(i)[0] for i in range(len(source.validation)))]
        assert all(torch.equal(p, p[..., :1].expand_as(p)) for p in pictures)
        added = (noisy - clean)[..., 0].std((1, 2))
        assert (noise.GREY_LEVEL * added / sigma.flatten()).mean().item() == pytest.approx(1, abs=0.05)
        shown, truth, level = source._noisy(0)
        assert level == pytest.approx(noise.GREY_LEVEL * (shown - truth)[..., 0].std().item(), rel=0.1)


@pytest.mark.usefixtures("small_unet")
class TestOfPicturesWithoutColours:
    """Of a parent with two networks, the one for such pictures goes on learning; the other stays as it is."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Pairs of grey pictures, which are a folder of clean and one of noisy pictures as well."""
        (tmp_path / "grey").mkdir()
        for i in range(4):
            picture = photo(64, 72, seed=i).mean(2, keepdim=True).expand(-1, -1, 3)
            for half in (1, 2):
                generator = torch.Generator().manual_seed(10 * i + half)
                save(
                    tmp_path / "grey" / f"{i}_{half}.png",
                    noise.add_gaussian(picture[..., :1], 0.1, generator).clamp(0, 1).expand(-1, -1, 3),
                )
        return tmp_path / "grey"

    @pytest.fixture
    def given(self, tmp_path: Path) -> dict[str, Tensor]:
        """The values of a parent with a network for grey pictures, `given.safetensors`."""
        networks = {start: small(torch.Generator().manual_seed(seed)) for start, seed in (("", 77), (weights.GREY, 78))}
        values = {start + p.name: p.value.half() for start, network in networks.items() for p in network.param()}
        weights.save(tmp_path / "given.safetensors", values, {"architecture": "unet", "grey_level": noise.GREY_LEVEL})
        return values

    @pytest.mark.parametrize("method", ["clean", "pairs", "noisy"])
    def test_the_network_for_them_learns(self, recipe: Make, folder: Path, given: dict[str, Tensor], tmp_path: Path, method: str) -> None:
        it = recipe(data=(folder,), method=method, initial=tmp_path / "given.safetensors", lr=1e-9)
        run(it)
        written = load_file(it.out)
        assert_same_tensors(*({n: value for n, value in them.items() if not n.startswith(weights.GREY)} for them in (written, given)))
        for name, value in given.items():
            torch.testing.assert_close(written[name], value, atol=1e-3, rtol=0)
        card = weights.load(it.out)[1]
        assert card["note"].endswith(trainer.AS_PARENT)
        assert card["weights"] == sum(value.numel() for value in given.values())

    @pytest.mark.parametrize("method", ["clean", "pairs"])
    def test_the_parent_is_measured_as_it_would_denoise_them(
        self, recipe: Make, folder: Path, given: dict[str, Tensor], tmp_path: Path, method: str
    ) -> None:
        it = recipe(data=(folder,), method=method, initial=tmp_path / "given.safetensors", evaluate_every=2, steps=2)
        run(it)
        source = trainer._source(it, None, torch.device("cpu"))
        parent, made = (Denoiser.load(path, "cpu", "float32") for path in (it.initial, it.out))
        for told, denoiser in (("parent", parent), ("trained", made)):

            def served(noisy: Tensor, level: Tensor | float, denoiser: Denoiser = denoiser) -> Tensor:
                assert isinstance(level, float)
                return denoiser(noisy[0], level / noise.GREY_LEVEL)[None]

            assert weights.load(it.out)[1]["quality"][told] == pytest.approx(source.measure(served), abs=2e-3)

    def test_a_run_that_was_stopped_goes_on_to_the_very_same_bits_without_its_parent(
        self, recipe: Make, folder: Path, given: dict[str, Tensor], tmp_path: Path
    ) -> None:
        it = recipe(data=(folder,), initial=tmp_path / "given.safetensors")
        run(it)
        whole = load_file(it.out)
        it.checkpoint.unlink()
        run_until(3, it)
        run(recipe(data=(folder,)), resume=True)
        assert_same_tensors(load_file(it.out), whole)

    def test_a_single_picture_with_colours_is_enough_and_its_network_learns(
        self, recipe: Make, folder: Path, given: dict[str, Tensor], tmp_path: Path
    ) -> None:
        save(folder / "coloured.png", photo(64, 72, seed=9))
        it = recipe(data=(folder,), initial=tmp_path / "given.safetensors", lr=1e-9)
        run(it)
        written = load_file(it.out)
        assert {weights.GREY + name for name in written} == {name for name in given if name.startswith(weights.GREY)}
        for name, value in written.items():
            torch.testing.assert_close(value, given[name], atol=1e-3, rtol=0)
        assert trainer.AS_PARENT not in weights.load(it.out)[1]["note"]

    def test_a_child_that_is_told_no_level_keeps_no_network_of_a_parent_that_is(
        self, recipe: Make, folder: Path, given: dict[str, Tensor], tmp_path: Path
    ) -> None:
        it = recipe(data=(folder,), initial=tmp_path / "given.safetensors", lr=1e-9, photographic=1.0)
        run(it)
        written = load_file(it.out)
        for name, value in written.items():
            torch.testing.assert_close(value, given[name], atol=1e-3, rtol=0)
        assert not any(name.startswith(weights.GREY) for name in written)

    def test_without_a_network_for_them_the_parents_only_one_learns_and_stays(
        self, recipe: Make, folder: Path, given: dict[str, Tensor], tmp_path: Path
    ) -> None:
        one = {name: value for name, value in given.items() if not name.startswith(weights.GREY)}
        weights.save(tmp_path / "given.safetensors", one, {"architecture": "unet"})
        it = recipe(data=(folder,), initial=tmp_path / "given.safetensors")
        run(it)
        written = load_file(it.out)
        assert_same_tensors({name: written[name] for name in one}, one)
        assert any(not torch.equal(written[weights.GREY + name], value) for name, value in one.items())


@pytest.mark.usefixtures("small_denoisers")
class TestOfAnArchitecture:
    def test_a_gated_network_learns_and_says_so_on_its_card(self, recipe: Make) -> None:
        told = run(recipe(architecture="gated"))
        assert len({p.loss for p in told}) == 6
        card = weights.load(recipe().out)[1]
        started = {p.name: p.value for p in small_gated(torch.Generator().manual_seed(0)).param()}
        assert card["architecture"] == "gated"
        assert card["weights"] == sum(value.numel() for value in started.values())
        stored = load_file(recipe().checkpoint)
        assert all(not torch.equal(stored[f"now.{name}"], value) for name, value in started.items())
        denoiser = Denoiser.load(recipe().out, "cpu", "float32")
        assert {p.name for p in denoiser.network.param()} == started.keys()

    def test_a_gated_run_that_was_stopped_goes_on_to_the_very_same_bits(self, recipe: Make, tmp_path: Path) -> None:
        whole, parts = (recipe(architecture="gated", out=tmp_path / name / "m.safetensors") for name in ("whole", "parts"))
        losses = [p.loss for p in run(whole)]
        assert [p.loss for p in (*run_until(3, parts), *run(parts, resume=True))] == losses
        assert_same_tensors(load_file(parts.out), load_file(whole.out))
        assert weights.read(parts.out)[1] == weights.read(whole.out)[1]
        assert_same_tensors(load_file(parts.checkpoint), load_file(whole.checkpoint))

    @pytest.mark.parametrize("asked", ["unet", "gated"])
    def test_initial_weights_keep_their_architecture_whatever_is_asked_for(self, recipe: Make, tmp_path: Path, asked: str) -> None:
        given = {p.name: p.value for p in small_gated(torch.Generator().manual_seed(77)).param()}
        weights.save(tmp_path / "given.safetensors", given, {"architecture": "gated"})
        it = recipe(initial=tmp_path / "given.safetensors", architecture=asked)
        run_until(1, it)
        assert [p.step for p in run(it, resume=True)] == [2, 3, 4, 5, 6]
        assert weights.load(it.out)[1]["architecture"] == "gated"
        assert weights.read(it.checkpoint)[1]["architecture"] == "gated"
        assert load_file(it.out).keys() == given.keys()

    def test_initial_weights_of_the_gated_denoiser_become_the_deep_ones_that_are_asked_for(
        self, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(networks.ARCHITECTURES, "gated", networks.gated)
        given = {p.name: p.value for p in networks.gated(torch.Generator().manual_seed(77)).param()}
        weights.save(tmp_path / "given.safetensors", given, {"architecture": "gated"})
        it = recipe(initial=tmp_path / "given.safetensors", architecture="deep", steps=2)
        run_until(1, it)
        assert [p.step for p in run(it, resume=True)] == [2]
        network, card = weights.load(it.out)
        assert (card["architecture"], card["multiply_adds_a_pixel"]) == ("deep", 377648)
        learned = [p.name for p in network.param() if p.value.ndim > 1 and p.value.count_nonzero()]
        assert len(learned) == len([p for p in network.param() if p.value.ndim > 1])

    def test_a_checkpoint_of_a_time_with_one_architecture_is_of_that(self, recipe: Make, tmp_path: Path) -> None:
        whole, it = recipe(out=tmp_path / "whole" / "m.safetensors"), recipe()
        losses = [p.loss for p in run(whole)]
        run_until(3, it)
        tensors, told = weights.read(it.checkpoint)
        asked = json.loads(told["recipe"])
        assert (told.pop("architecture"), asked.pop("architecture")) == ("unet", "unet")
        weights.write(it.checkpoint, tensors, told | {"recipe": json.dumps(asked)})
        assert [p.loss for p in run(it, resume=True)] == losses[3:]


def test_the_learning_rate_warms_up_and_falls_straight(recipe: Make) -> None:
    it = recipe(steps=104, warm_up=4, lr=0.1)
    assert [it.lr_at(step) for step in range(5)] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert it.lr_at(54) == pytest.approx(0.1 * (1 - 0.999 / 2))
    assert it.lr_at(4 + 25) == pytest.approx(0.1 * (1 - 0.999 / 4))
    assert it.lr_at(104) == pytest.approx(0.0001)
    rates = [it.lr_at(step) for step in range(4, 105)]
    assert rates == sorted(rates, reverse=True)


def test_without_a_warm_up_the_first_step_has_the_whole_rate(recipe: Make) -> None:
    assert recipe(warm_up=0, lr=0.1).lr_at(0) == pytest.approx(0.1)


def test_a_run_shorter_than_its_warm_up_has_a_rate_at_every_step(recipe: Make) -> None:
    it = recipe(steps=3, warm_up=5, lr=0.1)
    assert [it.lr_at(step) for step in range(3)] == pytest.approx([0.02, 0.04, 0.06])


def wrong() -> Iterator[tuple[dict[str, Any], str]]:
    for name in ("steps", "batch", "evaluate_every"):
        for value in (0, -3):
            yield {name: value}, f"{name} (={value}) must be at least 1"
    for patch in (0, 4, 20, -8):
        yield {"patch": patch}, f"patch (={patch}) must be a multiple of 8, and not 0: try 96"
    for name in ("photographic", "grey"):
        for share in (-0.1, 1.1, math.nan):
            yield {name: share}, f"{name} (={share}) must be a share from 0 to 1: try 0.3"
    yield {"untold": 0.05}, "untold (=0.05) is for photographic (=0.0) above 0: otherwise every level is told"
    for untold in (-1.5, 1.5, math.nan):
        told = f"untold (={untold}) must be from -1 to 1: 0.05 is a level of 12 in 8-bit steps"
        yield {"untold": untold, "photographic": 0.5}, told
    for sigma in ((-0.1, 0.2), (0.3, 0.2), (0.0, 1.5), (0.0, math.nan)):
        yield {"sigma": sigma}, f"sigma (={sigma}) must be a range inside [0, 1]: (0, 0.2) is 0 to 51 in 8-bit steps"
    yield {"architecture": "resnet"}, "architecture (=resnet) must be one of unet, gated, deep"
    yield {"method": "magic"}, "method (=magic) must be one of clean, pairs, noisy"
    apart = 'validation (=apart) is for method "clean": pairs holds out some of its own pictures'
    yield {"method": "pairs", "validation": Path("apart")}, apart
    cleaner = 'cleaner (=w) is for method "clean": noisy learns from noisy pictures as they are'
    yield {"method": "noisy", "cleaner": Path("w")}, cleaner
    for lr in (0.0, -1.0, math.nan):
        yield {"lr": lr}, f"lr (={lr}) must be above 0: try 1e-3"
    for clip in (0.0, -1.0, math.nan):
        yield {"clip": clip}, f"clip (={clip}) must be above 0: try 0.3"
    for out in ("model", "model.md", "model.checkpoint"):
        yield {"out": Path(out)}, f"out (={out}) must be a file that ends in .safetensors: try model.safetensors"


@pytest.mark.parametrize(("asked", "kept"), [(None, noise.UNTOLD), (12 / 255, 12 / 255)])
def test_what_stands_for_no_level_is_in_the_batches_and_in_the_card_and_is_handed_on(
    recipe: Make, asked: float | None, kept: float
) -> None:
    first = recipe(photographic=1.0, untold=asked, steps=1, batch=8, evaluate_every=1)
    run(first)
    card = weights.load(first.out)[1]
    assert (card["blind"], card["untold"]) == (True, kept)
    child = recipe(photographic=1.0, initial=first.out, steps=1, batch=8, out=first.out.with_name("child.safetensors"))
    run(child)
    assert weights.load(child.out)[1]["untold"] == kept
    for made in (first, child):
        source = trainer._source(made, None, torch.device("cpu"))
        _, _, level = next(source.batches(0, lambda noisy, level: noisy, slice(None)))
        assert (level == torch.tensor(kept)).any()


@pytest.mark.parametrize(("changed", "message"), [pytest.param(*each, id=str(each[0])) for each in wrong()])
def test_a_recipe_that_cannot_be_followed_is_refused(recipe: Make, changed: dict[str, Any], message: str) -> None:
    with refused(TrainingError, message):
        recipe(**changed)


def test_a_folder_is_no_weights_file(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(TrainingError, match=r"must be a file that ends in \.safetensors"):
        recipe(out=tmp_path / "a.safetensors")


def test_a_recipe_is_plain_values_in_the_checkpoint(recipe: Make) -> None:
    it = recipe()
    plain = trainer._plain(it)
    assert json.loads(json.dumps(plain)) == plain
    assert plain.keys() == {field.name for field in dataclasses.fields(it)}
