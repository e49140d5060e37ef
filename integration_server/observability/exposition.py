"""Prometheus' text format."""

from collections.abc import Iterator, Mapping

from prometheus_client import generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from integration_server.observability.metrics import Metric, SampleKey


def format_metrics(values: Mapping[Metric, Mapping[SampleKey, float]]) -> bytes:
    """The samples of all metrics."""
    return generate_latest(_Values(values))


class _Values(Collector):
    def __init__(self, values: Mapping[Metric, Mapping[SampleKey, float]]) -> None:
        self._values = values

    def collect(self) -> Iterator[Family]:
        """The families that have samples."""
        for metric, samples in self._values.items():
            if samples:
                family = Family(metric.family, metric.help, metric.kind)
                for (name, labels), value in samples.items():
                    family.add_sample(name, dict(labels), value)
                yield family
