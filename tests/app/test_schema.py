"""What the OpenAPI schema promises is kept, whatever is asked: Schemathesis asks, with every check that it has."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("keys", ["", "k" * 32], ids=["open", "with keys"])
def test_the_schema_is_kept_whatever_is_asked(listening, keys):
    with listening(max_silence_seconds=30, api_keys=keys) as address:
        url = "http://{}:{}/openapi.json".format(*address.port)
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(ROOT / "tests/schemathesis.toml"), "run", url]
        options = ["--checks", "all", "--max-examples", "5", "--seed", "1", "--request-timeout", "60", "--no-color"]
        options += ["--header", f"Authorization: Bearer {keys}"] if keys else []  # it asks without one too, where the schema says so
        ran = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert "No issues found" in ran.stdout or "passed" in ran.stdout
