"""The `clearfold` command. Parses, calls `core` or starts the service, and prints; computes nothing itself.

`core` is imported inside the commands: it brings torch, and `--help` should not wait for that.
"""

import dataclasses
import errno
import json
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from app.settings import Settings
    from core import Auto, Denoiser
    from core.reproduce import Epoch
    from core.trainer import Progress as Training
    from core.trainer import Recipe

cli = typer.Typer(
    help="Removes noise from pictures, over HTTP and here, and trains the network that does it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out, err = Console(), Console(stderr=True)

ModelOption = Annotated[
    str | None,
    typer.Option(help="A model's name (see `clearfold models`), a .safetensors file, or auto, which suits each picture's noise."),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto for a GPU where there is one.")]
EnsembleOption = Annotated[
    bool,
    typer.Option(
        "--ensemble",
        help="Take the mean of eight answers, to the picture turned and mirrored: a little better, for eight times the time.",
    ),
]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for what the device is fastest at.")]


def main() -> None:
    """The entry point: a user's mistake is one line and exit status 1, never a traceback."""
    try:
        cli()
    except Exception as error:
        from app import together
        from app.access import AccessError
        from app.errors import Problem
        from app.store import StoreError
        from core import DataError, DeviceError, ImageError, KernelError, WeightsError
        from core.ranks import Elsewhere, Lost
        from core.trainer import TrainingError

        mistakes = (
            DataError, DeviceError, ImageError, WeightsError, KernelError, TrainingError, AccessError, Problem, StoreError, OSError, Lost
        )  # fmt: skip
        if not isinstance(error, (*mistakes, Elsewhere)):
            raise
        if not isinstance(error, Elsewhere):
            _say(f"process {together.rank()}: {error}" if together.rank() else str(error))
        sys.exit(1)


def _settings_help() -> str:
    """One line a setting, for the end of `serve --help`."""
    from app.settings import Settings

    lines = ["[bold]Settings[/bold], by environment; an option given here wins:"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "unset" if default in (None, "") else default
        lines.append(f"[cyan]CLEARFOLD_{name.upper()}[/cyan] = {shown}: {field.description}")
    return "\n\n".join(lines)


class _ServeCommand(typer.core.TyperCommand):
    """`serve`, its settings explained below its options; they are looked up only when help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.epilog = _settings_help()
        super().format_help(ctx, formatter)


@cli.command(cls=_ServeCommand)
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8000")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.", show_default="auto")] = None,
) -> None:
    """Start the service: POST /denoise, POST /train, and /docs to try them."""
    import uvicorn

    from app import logs
    from app.access import Access
    from app.main import create_app
    from app.models import Models
    from app.server import protocol

    settings = _settings(host=host, port=port, device=device)
    _warn_of_unknown_settings()
    _see_whether_free(settings.host, settings.port)  # both refuse before anything is loaded
    Access(settings)
    models = Models.load(settings)  # before the server starts, so that broken weights are one clear line
    for model in models:
        _say_taken(model)
    uvicorn.run(
        create_app(settings, lambda _: models),
        host=settings.host,
        port=settings.port,
        http=protocol(settings),
        timeout_keep_alive=settings.max_idle_seconds,
        log_config=logs.configuration(settings.log_format),
    )


@cli.command()
def worker(
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.", show_default="auto")] = None,
    host: Annotated[str, typer.Option(help="Address for --port.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Answer /livez, /readyz and /metrics on this port.", show_default="none")
    ] = None,
) -> None:
    """Train what services elsewhere were asked to, until told to stop: with their jobs_url, and their store_url or shared train_dir."""
    from app import probes
    from app.ledger import AWAY, Ledger
    from app.queue import Queue
    from app.worker import SWEEP_SECONDS, Worker

    settings = _settings(device=device)
    _warn_of_unknown_settings()
    ledger = Ledger.of(settings)
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    training: Worker | None = None
    with probes.answering((host, port) if port is not None else None, ledger, lambda: training is not None and training.ready()):
        while not told.is_set() and training is None:
            try:
                begun = Worker(ledger, Queue(ledger.url), settings)
                begun.start()
                training = begun
            except AWAY as away:
                _say(f"the jobs' database does not answer: {str(away).splitlines()[0]}")
                told.wait(SWEEP_SECONDS)
        if training is not None:
            err.print(f"waiting for training jobs in {ledger.url!r}", style="dim", markup=False, highlight=False, soft_wrap=True)
            told.wait()
            training.stop()
    ledger.close()


@cli.command()
def denoise(
    paths: Annotated[list[Path], typer.Argument(help="Pictures, and folders of pictures.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A folder to write to, or a file for a single picture; else beside each picture, as NAME-denoised.",
        ),
    ] = None,
    sigma: Annotated[str, typer.Option(help="Noise level: a standard deviation in 8-bit steps, 0 to 100, or auto.")] = "auto",
    strength: Annotated[float, typer.Option(min=0, max=2, help="Scales the noise level; 0 takes nothing away.")] = 1.0,
    model: ModelOption = None,
    format: Annotated[str | None, typer.Option(help="Format to write, as png or jpeg; else the picture's own.")] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Quality of lossy formats.", show_default="95")] = None,
    ensemble: EnsembleOption = False,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Largest picture: 10 to 16 bytes of memory a pixel, by its format; 30 more for --ensemble.")
    ] = 200_000_000,
    engine: Annotated[
        Literal["plain", "ray"] | None,
        typer.Option(
            help="Who does the work: plain is this machine, ray a Ray cluster. Where it is named, the last path is the folder to write to.",
            show_default="plain",
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Remove the noise from pictures. A bad file is named and passed over; the exit status is then 1.

    A folder that is written to keeps a ledger: the same command once more does only what is missing, or has changed.
    """
    from app import archive
    from core import DataError, data, images

    level = _level(sigma)
    if engine is not None and output is None and len(paths) > 1:
        *paths, output = paths
    if engine == "ray" and output is None:
        raise typer.BadParameter("ray writes to a folder that all machines see: name it behind the pictures", param_hint="--engine")
    to_file = output is not None and bool(output.suffix) and not output.is_dir() and len(paths) == 1 and not paths[0].is_dir()
    form = _format(format or (output.suffix[1:] if output is not None and to_file else None))
    sources: list[archive.Source] = []
    passed_over: list[Path] = []
    failed: list[str] = []
    for given in paths:
        try:
            there = data.find([given])
            ours = set() if given.is_file() else {path for path in there if _ours(path, given, output)}
            found = [path for path in there if path not in ours]
        except DataError as missing:
            failed.append(str(missing))
            continue
        if given.is_file() and not found:
            found = [given]
        originals = {path.with_suffix("") for path in found}
        passed_over += sorted(path for path in ours if _written(path) and _original(path) not in originals)
        if not found:
            failed.append(f"{given} holds no picture")
        sources += [archive.Source(path, given if given.is_dir() else path.parent) for path in found]
    how = archive.How(tuple(_suitable(model)), device, dtype, level, strength, form, quality, max_pixels, ensemble)

    def target(source: archive.Source, made: str) -> Path:
        return output if output and to_file else _target(source.path, source.root, output, images.FORMATS[made].suffixes)

    with ExitStack() as until_done:
        ledger = None if output is None or to_file else until_done.enter_context(archive.Ledger.of(output))
        worker: archive.Engine
        if engine == "ray":
            from app import cluster

            worker = cluster.Cluster(how, len(sources), _say_quietly)
        else:
            worker = archive.Plain(how, _load_suitable(model, device, dtype), len(sources))
        stop = until_done.enter_context(_interrupted())
        bar = until_done.enter_context(_bar())
        task = bar.add_task("denoising", total=len(sources))

        def report(told: archive.Told, source: archive.Source, reason: str) -> None:
            if reason:
                _say_quietly(f"{source.path.name}: {reason}")
            bar.update(task, completed=told.done + told.already + len(told.failed), description=source.path.name)

        told = archive.run(sources, how, worker, target, ledger, report, stop)
        bar.update(task, description="stopped" if stop() else "done")
    for line in [*failed, *(told.failed[number] for number in sorted(told.failed))]:
        _say(line)
    if told.already:
        _say_quietly(f"{told.already} of {told.total} were there already")
    for path in passed_over:
        _say_quietly(f"{path} was passed over, for an earlier run may have written it: name it itself if it is to be denoised")
    if stop() and (left := told.total - told.done - told.already - len(told.failed)):
        err.print(f"stopped with {left} of {told.total} left: the same command goes on", highlight=False)
        raise typer.Exit(128 + stop.signal)
    if failed or told.failed:
        raise typer.Exit(1)


@cli.command()
def train(
    folders: Annotated[list[Path], typer.Argument(help="Folders of pictures.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The weights file to write.")] = Path("model.safetensors"),
    method: Annotated[
        Literal["clean", "pairs", "noisy"],
        typer.Option(help="clean: noise is put on the pictures; pairs: x_1.png and x_2.png, or two folders; noisy: noisy ones alone."),
    ] = "clean",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of training; the learning rate falls towards the last.", show_default="7000")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="As many steps as fit into that time.", show_default="as --steps says")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Patches a step.")] = 16,
    patch: Annotated[int, typer.Option(help="Side of a patch in pixels, a multiple of 8.")] = 96,
    sigma_min: Annotated[float, typer.Option(min=0, max=255, help="Least noise, in 8-bit steps.")] = 0,
    sigma_max: Annotated[float, typer.Option(min=0, max=255, help="Most noise, in 8-bit steps.")] = 55,
    photographic: Annotated[float, typer.Option(min=0, max=1, help="Share of patches with a camera's noise, not Gaussian.")] = 0,
    untold: Annotated[
        float | None,
        typer.Option(min=-255, max=255, help="What stands for a camera's level, unknown, in 8-bit steps; default: the parent's."),
    ] = None,
    grey: Annotated[float, typer.Option(min=0, max=1, help="Share of patches that lose their colours.")] = 0.1,
    lr: Annotated[float, typer.Option(help="Learning rate after the warm-up.")] = 1e-3,
    architecture: Annotated[
        str,
        typer.Option(
            help="unet; gated, which is finer and a quarter as fast on a processor; or deep, which is twice gated and can start from its "
            "weights. Other initial weights keep theirs."
        ),
    ] = "unet",
    initial: Annotated[Path | None, typer.Option(help="Weights to start from, instead of random ones.")] = None,
    cleaner: Annotated[Path | None, typer.Option(help="Weights that first rid the clean pictures of their own grain.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Folder of clean pictures to measure on; else some are held out.")] = None,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between two measurements.")] = 500,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, patches and noise.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside the output.")] = False,
    nproc: Annotated[int, typer.Option(min=1, help="Processes that train together, each with a part of the cores or its own GPU.")] = 1,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Train a denoiser on photographs, or on noisy pictures of your own.

    Ctrl-C saves and stops; the same command with --resume goes on to the very same losses, on any number of processes.
    """
    from app import together
    from core import trainer, weights

    recipe = trainer.Recipe(
        data=tuple(folders),
        out=output,
        method=method,
        steps=trainer.Recipe.steps if steps is None else steps,
        batch=batch,
        patch=patch,
        sigma=(sigma_min / 255, sigma_max / 255),
        photographic=photographic,
        untold=None if untold is None else untold / 255,
        grey=grey,
        lr=lr,
        architecture=architecture,
        initial=initial,
        cleaner=cleaner,
        validation=validation,
        evaluate_every=evaluate_every,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    recipe.divide(nproc)  # before any is started
    resume = resume or (together.restarted() and recipe.checkpoint.exists())
    first = together.rank() == 0
    if not resume:
        _see_whether_begun(recipe)
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    if minutes is not None:
        if steps is not None:
            raise trainer.TrainingError(f"steps (={steps}) and minutes (={minutes:g}) both say when to end: give one of them")
        if nproc > 1 or together.size() > 1:
            raise trainer.TrainingError(f"minutes (={minutes:g}) is for one process, whose pace is measured: give several --steps")
    with together.ranks(recipe, nproc) as ranks, _interrupted() as stop, _bar("{task.fields[told]}", shown=first) as bar:
        task = bar.add_task("reading pictures", total=None if minutes is not None else recipe.steps, told="")
        if minutes is not None:
            fit = trainer.planned_steps(recipe) if resume else trainer.steps_within(recipe, deadline - time.monotonic(), stop)
            recipe = dataclasses.replace(recipe, steps=fit, warm_up=min(recipe.warm_up, fit // 10))
            bar.update(task, total=fit)
        step, psnr = recipe.steps, "-"  # a run resumed at its end reports nothing

        def report(now: "Training") -> None:
            nonlocal step, psnr
            step = now.step
            if now.psnr is not None:
                psnr = f"{now.psnr:.2f} dB"
            told = f"loss {now.loss:.4f}  PSNR {psnr}  {now.pixels_per_second / 1e6:.2f} Mpx/s"
            bar.update(task, completed=now.step, description="training", told=told)
            if now.psnr is not None and not bar.console.is_terminal:  # a log has no bar; a line for each measurement tells instead
                bar.console.print(f"step {now.step} of {now.steps}  {told}  {now.seconds_left:.0f} s left", highlight=False, soft_wrap=True)

        path = trainer.train(recipe, report, lambda: stop() or time.monotonic() > deadline, resume, ranks)
        stopped = step < recipe.steps and stop()
    if not first:
        return
    if stopped:
        err.print(f"stopped and saved at step {step}: go on with --resume", highlight=False)
        raise typer.Exit(128 + stop.signal)
    out.print(f"{path} and its card are written", markup=False, highlight=False, soft_wrap=True)
    card = weights.load(path)[1]
    if quality := card.get("quality"):
        told = ", ".join(f"{who} {quality[who]:.2f}" for who in ("before", "parent", "trained") if quality[who] is not None)
        out.print(f"{card['note']}\n{quality['what']}: {told}", markup=False, highlight=False, soft_wrap=True)


def _see_whether_begun(recipe: "Recipe") -> None:
    """What an earlier run made is not written over."""
    from core.trainer import TrainingError

    remedy = "choose another --output, or remove it"
    if recipe.checkpoint.exists():
        raise TrainingError(f"{recipe.checkpoint} of an earlier run is there: go on with --resume, {remedy}")
    if recipe.out.exists():
        raise TrainingError(f"{recipe.out} is there already: {remedy}")


@cli.command()
def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="Folder of clean pictures, or of pairs as x_noisy.png and x_clean.png.", show_default=False)
    ],
    sigma: Annotated[
        list[float] | None,
        typer.Option(min=0, max=255, help="Noise level in 8-bit steps; repeatable.", show_default="15 25 50; of pairs: not told"),
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Let the denoiser find the noise level.")] = False,
    model: ModelOption = None,
    ensemble: EnsembleOption = False,
    sheet: Annotated[Path | None, typer.Option(help="Write noisy, denoised and clean pictures side by side: worst, median, best.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Write the figures into the model's card.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Measure PSNR, SSIM and brightness: of clean pictures with noise put on, as the published tables do, or of real pairs."""
    from core import AUTO, Auto, Ensemble, evaluation, images, weights

    if record and model == AUTO:
        raise typer.BadParameter("figures are recorded in one model's card: name it with --model", param_hint="--record")
    if record and ensemble:
        raise typer.BadParameter("a card has the figures of the model alone: leave out --ensemble", param_hint="--record")
    path = _weights(None if model == AUTO else model)
    form = _format(sheet.suffix[1:]) if sheet else None
    pictures = evaluation.Pictures(folder)
    loaded = _load_suitable(model, device, dtype) if model == AUTO else _load(str(path), device, dtype)
    denoiser = Ensemble(loaded) if ensemble else loaded
    with _bar() as bar:
        task = bar.add_task("evaluating", total=None)
        rows = evaluation.evaluate(denoiser, pictures, sigma, blind, lambda done, total: bar.update(task, completed=done, total=total))
    if sheet:
        page = evaluation.contact_sheet(denoiser, pictures, rows, blind)
        sheet.write_bytes(images.write(images.Picture(page, format=form or "png"), form))
    if record and not isinstance(loaded, Auto):
        card = dict(loaded.card)
        key, figures = evaluation.recorded(pictures, rows, blind)
        card["figures"] = {**card.get("figures", {}), key: {**card.get("figures", {}).get(key, {}), **figures}}
        weights.save(path, weights.read(path)[0], card)
    if as_json:
        print(json.dumps(evaluation.as_json(denoiser, pictures, rows, blind)))
        return
    table = Table(title=f"{denoiser.name} on {evaluation.recorded(pictures, rows, blind)[0]}")
    for column in ("sigma", "pictures", "noisy, dB", "denoised, dB", "SSIM", "noise left", "mean moves by"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            "-" if row.sigma is None else f"{row.sigma:g}",
            str(row.pictures),
            f"{row.noisy_psnr:.2f}",
            f"{row.psnr:.2f}",
            f"{row.ssim:.4f}",
            f"{row.left:.1%}",
            f"{row.shift:.3f}, worst {row.worst_shift:.3f}",
        )
    out.print(table)


@cli.command()
def reproduce(
    folders: Annotated[list[Path], typer.Argument(help="Folders of photographs, best a thousand.", show_default=False)],
    recipe: Annotated[
        Literal["report", "better"],
        typer.Option(help="report: SGD at learning rate 2, as it was; better: Adam, both directions of each pair, averaged weights."),
    ] = "report",
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    pairs: Annotated[int, typer.Option(min=50, help="Pairs of noisy pictures to train on.")] = 50_000,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Repeat the Noise2Noise experiment: learn to denoise 32x32 pictures from pairs of noisy ones alone."""
    from core import reproduce as experiment

    started = time.monotonic()
    with _bar("{task.fields[told]}") as bar:
        task = bar.add_task("making pairs", total=None, told="")
        training, validation = experiment.pictures(folders, pairs, seed)
        noisy = experiment.score(validation.noisy.float() / 255, validation.other)
        bar.console.print("mean of every picture's PSNR / PSNR of the mean error over all pictures", highlight=False)
        bar.console.print(f"noisy input  {noisy[0]:.2f} / {noisy[1]:.2f} dB", highlight=False)

        def after_epoch(epoch: "Epoch") -> None:
            bar.console.print(
                f"epoch {epoch.number:>2}     {epoch.mean_of_psnr:.2f} / {epoch.psnr_of_mean:.2f} dB"
                f"  loss {epoch.loss:.5f}  {epoch.seconds:.0f} s",
                highlight=False,
            )
            bar.update(task, told=f"{epoch.mean_of_psnr:.2f} dB")

        def after_batch(done: int, batches: int) -> None:
            bar.update(task, completed=done, total=batches, description="training")

        experiment.train(training, validation, recipe, epochs, device, dtype, seed, after_batch, after_epoch)
    out.print(f"total time {time.monotonic() - started:.0f} s, reading and making the pairs included", highlight=False)


@cli.command()
def key() -> None:
    """Make an API key, and the entry of CLEARFOLD_API_KEYS that knows it by its hash."""
    from app.access import new_key

    secret, entry = new_key()
    out.print(f"key    {secret}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"entry  {entry}:denoise+train+admin", markup=False, highlight=False, soft_wrap=True)


@cli.command()
def info() -> None:
    """Tell what this machine computes with, and why."""
    import torch

    from core import hardware, kernels

    device = hardware.take()
    dtype = hardware.fast_dtype(device)
    own = kernels.take(dtype, device)
    forced = kernels.forced()
    measured = kernels.rates() if device.type == "cpu" else {}
    rates = ", ".join(f"{rate / 1e9:.0f} G in {str(kind).removeprefix('torch.')}" for kind, rate in measured.items())
    table = Table(show_header=False, box=None)
    for name, told in (
        ("torch", torch.__version__),
        ("device", f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)),
        (
            "multiplies in",
            f"{str(dtype).removeprefix('torch.')}, which {'its processor' if device.type == 'cpu' else 'the GPU'} is fast at",
        ),
        ("convolves by", f"kernel {own.name}" if own else "torch's matrix products"),
        (
            "because",
            f"CLEARFOLD_KERNEL = {forced}" if forced != "auto" else kernels.why() if device.type == "cpu" else "a GPU needs no kernel",
        ),
        *([("measured", f"products a second and core: {rates}")] if rates else []),
    ):
        table.add_row(name, told)
    out.print(table, highlight=False, soft_wrap=True)


@cli.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Print this model's card.", show_default=False)] = None,
) -> None:
    """List the models there are, or print one's card."""
    from core import weights

    if name is not None:
        print(weights.card_text(weights.load(_weights(name))[1]))
        return
    table = Table("model", "file", "summary")
    for path in _shelf():
        table.add_row(path.stem, str(path), weights.load(path)[1].get("summary", ""))
    out.print(table)


def _settings(**given: Any) -> "Settings":
    """The environment's settings, and what is given and not None; one that is wrong is named."""
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as wrong:
        for each in wrong.errors():
            name, message = ".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")
            # A mistake of several settings has no name, and comes with all values there are.
            _say(f"CLEARFOLD_{name.upper()} = {each['input']!r}: {message}" if name else message)
        raise typer.Exit(1) from None


def _warn_of_unknown_settings() -> None:
    from app.settings import Settings

    for name in Settings.unknown():
        _say(f"{name} is set and means nothing: `clearfold serve --help` lists the settings")


def _see_whether_free(host: str, port: int) -> None:
    """Exits if nobody can listen there, before models are loaded. Whoever takes the port meanwhile is told by the server itself."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as unknown:
        _say(f"host = {host!r} is no address of this machine ({unknown.strerror}): try 127.0.0.1, or 0.0.0.0 for every one, and --port")
        raise typer.Exit(1) from None
    refused: list[OSError] = []
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port that was just closed is free
                tried.bind(address)
        except OSError as why:
            refused.append(why)
    taken = next((why for why in refused if why.errno == errno.EADDRINUSE), None)
    if taken or len(refused) == len(found):  # a name may have addresses that this machine lacks, of IPv6 say
        remedy = "stop what listens there, or choose another with --port" if taken else "choose another"
        _say(f"nobody can listen on {host} port {port} ({(taken or refused[0]).strerror}): {remedy}")
        raise typer.Exit(1)


def _shelf() -> list[Path]:
    return sorted(_settings().models_dir.glob("*.safetensors"), key=lambda path: path.stem)


def _weights(model: str | None) -> Path:
    """The file of a model that is named, or is the default, or is a file itself."""
    if model is not None and (model.endswith(".safetensors") or "/" in model):
        return Path(model)
    settings = _settings()
    name = model or settings.default_model or next((path.stem for path in _shelf()), None)
    if name is None:
        _say(f"CLEARFOLD_MODELS_DIR = {settings.models_dir} holds no weights: train some, or name a file with --model")
        raise typer.Exit(1)
    return settings.models_dir / f"{name}.safetensors"


def _suitable(model: str | None) -> list[Path]:
    """The model that is named; or, with `auto` or no name and no default, the two to choose from for each picture."""
    from core import AUTO, choice

    there = {path.stem for path in _shelf()}
    white, camera = choice.best(choice.WHITE, there), choice.best(choice.CAMERA, there)
    if (model == AUTO or (model is None and _settings().default_model is None)) and white and camera:
        return [_weights(white), _weights(camera)]
    return [_weights(None if model == AUTO else model)]


def _load_suitable(model: str | None, device: str, dtype: str) -> "Denoiser | Auto":
    from core import Auto, hardware

    with hardware.on_one_thread():  # it is others that will denoise
        denoisers = {path.stem: _load(str(path), device, dtype) for path in _suitable(model)}
    first = next(iter(denoisers))
    return denoisers[first] if len(denoisers) == 1 else Auto(denoisers, first)


def _load(model: str | None, device: str, dtype: str) -> "Denoiser":
    from core import Denoiser

    denoiser = Denoiser.load(_weights(model), device, dtype)
    _say_taken(denoiser)
    return denoiser


def _say_taken(denoiser: "Denoiser") -> None:
    from core import hardware, kernels

    hardware.keep_freed_memory()  # every command that loads a model goes on to use it
    dtype = str(denoiser.dtype).removeprefix("torch.")
    slow = "" if denoiser.device.type != "cpu" or kernels.available() or kernels.forced() != "auto" else f"; {kernels.why()}"
    _say_quietly(f"{denoiser.name} on {denoiser.device} in {dtype}{slow}")


def _say_quietly(words: str) -> None:
    err.print(words, style="dim", markup=False, highlight=False, soft_wrap=True)


def _level(sigma: str) -> float | None:
    """8-bit steps as a person types them -> [0, 1] image units, None for auto."""
    if sigma == "auto":
        return None
    try:
        level = float(sigma)
    except ValueError:
        level = -1.0
    if not 0 <= level <= 100:
        raise typer.BadParameter(f"{sigma!r} must be auto, or a number from 0 to 100 in 8-bit steps", param_hint="--sigma")
    return level / 255


def _format(name: str | None) -> str | None:
    from core import images

    if name is None or name in images.FORMATS:
        return name
    for form in images.FORMATS.values():
        if f".{name.lower()}" in form.suffixes:
            return form.name
    raise typer.BadParameter(f"{name!r} must be one of {', '.join(images.FORMATS)}", param_hint="--format")


def _written(path: Path) -> bool:
    """Whether it is called as what is written beside its original."""
    return path.stem.endswith("-denoised")


def _original(path: Path) -> Path:
    """That original, without its suffix."""
    return path.with_name(path.stem.removesuffix("-denoised"))


def _ours(path: Path, folder: Path, output: Path | None) -> bool:
    """Whether a picture in a folder to denoise is one that an earlier run wrote: beside its original, or to an output folder inside."""
    inside = output is not None and output.resolve() != folder.resolve() and output.resolve() in path.resolve().parents
    return inside or _written(path)


def _target(path: Path, root: Path, output: Path | None, suffixes: tuple[str, ...]) -> Path:
    suffix = path.suffix if path.suffix.lower() in suffixes else suffixes[0]
    if output is None:
        return path.with_name(f"{path.stem}-denoised{suffix}")
    return output / path.relative_to(root).with_suffix(suffix)


def _say(mistake: str) -> None:
    """One line, however long, so that it can be searched for and taken apart."""
    err.print(f"clearfold: {mistake}", style="red", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _bar(*more: str, shown: bool = True) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}", markup=False),  # a file's name
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, *(TextColumn(text) for text in more), console=err, disable=not shown) as bar:
        yield bar


class _Stop:
    """Whether a signal came, and its number."""

    signal = 0

    def __call__(self) -> bool:
        return self.signal != 0


@contextmanager
def _interrupted() -> Iterator[_Stop]:
    """Tells whether the work is to stop, by Ctrl-C or SIGTERM; a second one ends it at once."""
    stop = _Stop()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def tell(number: int, _: object) -> None:
        stop.signal = number
        restore()

    for number in usual:
        signal.signal(number, tell)
    try:
        yield stop
    finally:
        restore()


if __name__ == "__main__":
    main()
