"""The files for more than one machine name settings, metrics and limits that there are."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "app/deploy/compose.yaml").read_text())
KUBERNETES = list(yaml.safe_load_all((ROOT / "app/deploy/kubernetes.yaml").read_text()))
NGINX = (ROOT / "app/deploy/nginx.conf").read_text()
CONTAINERS = [pod["spec"]["template"]["spec"]["containers"][0] for pod in KUBERNETES if pod["kind"] == "Deployment"]
ENVIRONMENTS = {
    **{f"compose {name}": service["environment"] for name, service in COMPOSE["services"].items() if "environment" in service},
    **{f"kubernetes {each['name']}": {variable["name"]: variable.get("value") for variable in each["env"]} for each in CONTAINERS},
}


@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_every_variable_is_a_setting(where: str) -> None:
    ours = {name for name in ENVIRONMENTS[where] if name.startswith("CLEARFOLD_")}
    assert ours <= {f"CLEARFOLD_{name.upper()}" for name in Settings.model_fields}
    assert "CLEARFOLD_JOBS_URL" in ours or where == "compose postgres"


def test_replicas_leave_the_training_to_workers() -> None:
    for where, environment in ENVIRONMENTS.items():
        if "replica" in where:
            assert environment["CLEARFOLD_TRAIN_HERE"] == "false"


def test_the_metrics_that_more_pods_are_started_by_are_there(models_dir: Path, tmp_path: Path) -> None:
    asked = set(re.findall(r"metric: \{name: (\w+)\}", (ROOT / "app/deploy/kubernetes.yaml").read_text()))
    with TestClient(create_app(Settings(models_dir=models_dir, train_dir=tmp_path, device="cpu"))) as client:
        told = client.get("/metrics").text
    assert len(asked) == 2
    for name in asked:
        assert re.search(rf"^{name} 0", told, re.MULTILINE), name


def test_the_deployments_that_are_scaled_are_there_and_a_gpu_is_asked_for() -> None:
    names = {each["metadata"]["name"] for each in KUBERNETES if each["kind"] == "Deployment"}
    targets = [each["spec"]["scaleTargetRef"]["name"] for each in KUBERNETES if each["kind"] == "HorizontalPodAutoscaler"]
    assert sorted(targets) == sorted(names)
    assert {each["name"]: each["resources"]["limits"].get("nvidia.com/gpu") for each in CONTAINERS} == {"replica": None, "worker": "1"}


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_every_container_is_probed(probe: str) -> None:
    for container in CONTAINERS:
        get: dict[str, Any] = container[probe]["httpGet"]
        assert get["path"] in ("/livez", "/readyz")
        assert get["port"] in {port["name"] for port in container["ports"]}


def test_nginx_takes_what_the_service_takes_so_that_the_service_says_what_is_too_much() -> None:
    limits = Settings()
    for name in ("max_upload_bytes", "max_batch_bytes", "max_train_upload_bytes", "max_model_bytes"):
        (megabytes,) = re.findall(rf"client_max_body_size (\d+)m; +# {name}", NGINX)
        assert 0 < int(megabytes) * 2**20 - getattr(limits, name) < 10 * 2**20
    assert int(re.findall(r"client_header_timeout (\d+)s", NGINX)[0]) == limits.max_silence_seconds
