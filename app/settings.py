"""What an operator may set, by environment variables named CLEARFOLD_*. Reads nothing but the environment.

Every limit is named with its unit, and every field says in its description what it is for: `clearfold serve --help`
prints these descriptions.
"""

import os
from pathlib import Path

from pydantic import Field, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

import core

MIB = 1024 * 1024


def _shipped_weights() -> Path:
    return Path(core.__file__).parents[1] / "weights"


def _user_data() -> Path:
    # os.path.expanduser never fails, Path.home() does for a user without a home, as in many containers.
    return Path(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")) / "clearfold"


class Settings(BaseSettings):
    """The service's settings. `CLEARFOLD_PORT=9000` sets `port`."""

    model_config = SettingsConfigDict(env_prefix="CLEARFOLD_", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for every one.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 for any free one.")
    device: str = Field(default="auto", description="Where to compute: cpu, cuda, or auto for a GPU where there is one.")

    models_dir: Path = Field(default_factory=_shipped_weights, description="Folder of the models to serve.")
    default_model: str | None = Field(
        default=None, description="Model used when none is asked for; unset: the first by name in models_dir."
    )

    max_upload_bytes: PositiveInt = Field(default=32 * MIB, description="Largest body of POST /denoise, in bytes.")
    max_pixels: PositiveInt = Field(default=40_000_000, description="Largest picture, in pixels.")
    workers: PositiveInt = Field(default=1, description="Pictures worked on at the same time; each uses all cores it can get.")
    max_queued_pictures: int = Field(default=16, ge=0, description="Pictures that may wait for a worker; more are told 429.")

    train_dir: Path = Field(default_factory=_user_data, description="Folder for training jobs and the models that they make.")
    train_minutes: float = Field(default=10.0, gt=0, allow_inf_nan=False, description="Length of a training job unless told.")
    max_train_minutes: float = Field(default=24 * 60.0, gt=0, allow_inf_nan=False, description="Longest training job.")
    max_train_upload_bytes: PositiveInt = Field(default=1024 * MIB, description="Largest body of POST /train, in bytes.")
    max_train_unpacked_bytes: PositiveInt = Field(default=4096 * MIB, description="Largest upload once unzipped, in bytes.")
    max_train_pictures: PositiveInt = Field(default=10_000, description="Most pictures in one upload for training.")
