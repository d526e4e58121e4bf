"""What an operator may set, by environment variables named CLEARFOLD_*. Reads nothing but the environment.

Every limit is named with its unit, and every field says in its description what it is for: `clearfold serve --help`
prints these descriptions.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from limits import parse
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

import core
from core import images

MIB = 1024 * 1024
ELSEWHERE = {"kernel", "publish", "postgres_password"}
"""What else CLEARFOLD_* may set: which kernels compute (`core.kernels`), and what `compose.yaml` reads."""


def _shipped_weights() -> Path:
    return Path(core.__file__).parents[1] / "weights"


def _user_data() -> Path:
    # os.path.expanduser never fails, Path.home() does for a user without a home, as in many containers.
    return Path(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")) / "clearfold"


def _rate(rate: str) -> str:
    try:
        if rate:
            parse(rate)
    except ValueError:
        raise ValueError("a rate must be a number and a time, as 60/minute or 5/second") from None
    return rate


class Settings(BaseSettings):
    """The service's settings. `CLEARFOLD_PORT=9000` sets `port`."""

    model_config = SettingsConfigDict(env_prefix="CLEARFOLD_", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for every one.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 for any free one.")
    device: str = Field(default="auto", description="Where to compute: cpu, cuda, or auto for a GPU where there is one.")

    models_dir: Path = Field(default_factory=_shipped_weights, description="Folder of the models to serve.")
    default_model: str | None = Field(
        default=None, description="Model used when none is asked for; unset: the picture decides, see `auto`."
    )

    api_keys: str = Field(
        default="", repr=False, description="Keys, each KEY or sha256$DIGEST, with :denoise+train+admin behind it; see `clearfold key`."
    )
    open_to_anyone: bool = Field(
        default=False, description="Listen wider than loopback without API keys; training and changes to models are then off."
    )
    allowed_hosts: str = Field(
        default="",
        description="Names by which it may be asked for, as clean.example.org 10.0.0.5, or * for any; "
        "empty: any, but only localhost, 127.0.0.1 and [::1] when it listens on loopback without API keys.",
    )
    rate_limit: Annotated[str, AfterValidator(_rate)] = Field(
        default="", description="Requests for work from one address or key, as 60/minute; empty: no limit."
    )

    max_upload_bytes: PositiveInt = Field(default=32 * MIB, description="Largest body of POST /denoise, in bytes.")
    max_batch_bytes: PositiveInt = Field(default=1024 * MIB, description="Largest body of POST /denoise/batch, in bytes.")
    max_batches: PositiveInt = Field(default=4, description="Batches at the same time; more are told 429.")
    max_batch_files: PositiveInt = Field(default=1000, description="Most files in one batch, those in its zips counted.")
    max_other_bytes: PositiveInt = Field(default=MIB, description="Largest body of any other request, in bytes.")
    max_held_bytes: PositiveInt = Field(
        default=512 * MIB, description="Pictures' bytes in memory at a time, over all requests; more are told 429."
    )
    max_kept_bytes: int = Field(
        default=256 * MIB,
        ge=0,
        description="Decoded pictures kept in memory where their client asked for it, in bytes; the oldest goes first, 0 keeps none.",
    )
    kept_seconds: PositiveFloat = Field(default=60, description="How long such a picture is kept after it was last asked for.")
    max_pixels: PositiveInt = Field(default=40_000_000, description="Largest picture, in pixels.")
    max_side_pixels: PositiveInt = Field(default=32_768, description="Longest side of a picture.")
    max_frames: PositiveInt = Field(default=200, description="Most pages of a TIFF, or frames of an animation.")
    max_total_pixels: PositiveInt = Field(default=200_000_000, description="All frames of a file together.")
    max_scans: PositiveInt = Field(default=64, description="Most scans of a progressive JPEG.")
    max_decode_seconds: PositiveFloat = Field(default=30, description="Longest time to decode a frame.")
    max_decode_seconds_per_megapixel: PositiveFloat = Field(
        default=0.5, description="Most of a processor's time to decode a frame, on top of one second."
    )
    max_decode_bytes: PositiveInt = Field(
        default=256 * MIB, description="Most memory to decode a frame, on top of 32 bytes a pixel and three times the file."
    )
    max_silence_seconds: PositiveFloat = Field(
        default=15, description="Longest wait for the next bytes of a request, or for a client to take some."
    )
    max_receive_seconds: PositiveFloat = Field(default=600, description="Longest time for a whole body to arrive.")
    max_idle_seconds: PositiveInt = Field(
        default=65, description="Longest time that a connection may lie idle between two requests; longer than clients keep theirs."
    )
    max_connections: PositiveInt = Field(default=500, description="Open connections; more are told 429.")
    workers: PositiveInt = Field(
        default=1, description="Places where pictures are worked on, each with all cores; small ones share a place when others wait."
    )
    max_queued_pictures: int = Field(default=2, ge=0, description="Pictures that may wait for a worker; more are told 429.")
    max_queued_pixels: PositiveInt = Field(
        default=80_000_000, description="Pixels of pictures that wait or are worked on; more are told 429."
    )

    log_format: Literal["text", "json"] = Field(default="text", description="How the log is written: text, or json with a line an event.")

    train_dir: Path = Field(
        default_factory=_user_data,
        description="Folder for training jobs and the models that they make; on a shared volume if several machines have one jobs_url.",
    )
    store_url: str | None = Field(
        default=None,
        description="Bucket for the same, s3://NAME/PREFIX, in place of a shared volume; needs jobs_url. "
        "Each machine then has a train_dir of its own.",
    )
    train_here: bool = Field(default=True, description="Whether this process trains, or leaves that to others on the same jobs_url.")
    jobs_url: str | None = Field(
        default=None,
        repr=False,
        description="Database of training jobs and models, for several machines: postgresql://…; unset: a file in train_dir.",
    )
    train_minutes: float = Field(default=10.0, gt=0, allow_inf_nan=False, description="Length of a training job unless told.")
    max_train_minutes: float = Field(default=24 * 60.0, gt=0, allow_inf_nan=False, description="Longest training job.")
    max_train_upload_bytes: PositiveInt = Field(default=1024 * MIB, description="Largest body of POST /train, in bytes.")
    max_train_unpacked_bytes: PositiveInt = Field(default=4096 * MIB, description="Largest upload once unzipped, in bytes.")
    max_model_bytes: PositiveInt = Field(default=256 * MIB, description="Largest weights file that may be uploaded, in bytes.")
    max_train_pictures: PositiveInt = Field(default=10_000, description="Most pictures in one upload for training.")

    @field_validator("jobs_url", "store_url", mode="before")
    @classmethod
    def _unset_if_empty(cls, url: str | None) -> str | None:
        return url or None

    @model_validator(mode="after")
    def _a_bucket_has_a_database(self) -> Self:
        if self.store_url is not None and self.jobs_url is None:
            raise ValueError(f"store_url = {self.store_url!r} needs a database that tells what lies there: set jobs_url = postgresql://…")
        return self

    @classmethod
    def unknown(cls) -> list[str]:
        """Variables of the environment that look like settings and are none."""
        known = {f"CLEARFOLD_{name.upper()}" for name in cls.model_fields.keys() | ELSEWHERE}
        return sorted(name for name in os.environ if name.startswith("CLEARFOLD_") and name not in known)

    def limits(self) -> images.Limits:
        """What is read at most."""
        return images.Limits(
            max_pixels=self.max_pixels,
            max_total_pixels=max(self.max_pixels, self.max_total_pixels),
            max_side_pixels=self.max_side_pixels,
            max_frames=self.max_frames,
            max_scans=self.max_scans,
            max_decode_seconds=self.max_decode_seconds,
            max_decode_seconds_per_megapixel=self.max_decode_seconds_per_megapixel,
            max_decode_bytes=self.max_decode_bytes,
        )
