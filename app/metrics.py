"""What the service counts, in Prometheus' text format. Names no picture and no client."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry a service, so that two in one process do not add up."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "clearfold_requests", "Requests answered, by the door and the status.", ["method", "door", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "clearfold_request_seconds", "From a request's head to its answer's end.", ["door"], buckets=SECONDS, registry=self._registry
        )
        self.stages = Histogram(
            "clearfold_stage_seconds", "Of a picture: decode, denoise, encode.", ["stage"], buckets=SECONDS, registry=self._registry
        )
        self.pixels = Counter("clearfold_pixels", "Pixels denoised.", ["model"], registry=self._registry)
        self.pictures = Counter("clearfold_pictures", "Pictures and frames denoised, by the format they came in.", ["format"],
                                registry=self._registry)  # fmt: skip
        self.device = Gauge("clearfold_device_info", "What computes.", ["device", "dtype", "model"], registry=self._registry)

    def watch(self, name: str, told: str, value: Callable[[], float]) -> None:
        """A figure that is looked up when it is asked for."""
        self._registry.register(_Watched(name, told, value))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Watched(Collector):
    def __init__(self, name: str, told: str, value: Callable[[], float]) -> None:
        self._name, self._told, self._value = name, told, value

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._told)
        family.add_metric([], self._value())
        yield family
