"""Merges the snapshots of all processes into one exposition in Prometheus' text format.

Counters and histograms are added up. Those of a process that has ended stay in the sum: a counter does not fall because
a process was restarted. The gauges of a process that does not answer are absent, because nobody knows them.
"""

from collections.abc import Mapping

from integration_server.observability.metrics import METRICS, Metric, SampleKey, merge
from integration_server.observability.snapshots import Snapshot, metric_of


class SnapshotMerger:
    """The last snapshot of each process, and what the processes before it have counted.

    Without `keeps_ended`, a negative control, the counts of an ended process are lost.
    """

    def __init__(self, *, keeps_ended: bool = True) -> None:
        self._keeps_ended = keeps_ended
        self._last: dict[str, Snapshot] = {}
        self._ended: dict[SampleKey, float] = {}

    def exposition(self, snapshots: Mapping[str, Snapshot | None]) -> bytes:
        """The exposition, of the snapshots of all processes by name; None of a process that does not answer."""
        # A worker imports this module, and not the library: 2 MB.
        from integration_server.observability.exposition import format_metrics  # noqa: PLC0415

        for name, snapshot in snapshots.items():
            if snapshot is not None:
                self._replace(name, snapshot)
        values: dict[Metric, dict[SampleKey, float]] = {metric: {} for metric in METRICS}
        current = [snapshot.values for snapshot in snapshots.values() if snapshot is not None]
        silent = [last.values for name, last in self._last.items() if snapshots.get(name) is None]
        for gauges, sources in ((True, current), (False, [*current, *silent, self._ended])):
            for source in sources:
                for key, value in source.items():
                    metric = metric_of(key)
                    if (metric.kind == "gauge") is gauges:
                        merge(metric, values[metric], key, value)
        for name, snapshot in snapshots.items():
            up = METRICS.process_up
            values[up][up.name, (("process", name),)] = float(snapshot is not None)
        return format_metrics(values)

    def _replace(self, name: str, snapshot: Snapshot) -> None:
        """Keep the snapshot, and what its process has counted if another one takes its place."""
        before = self._last.get(name)
        self._last[name] = snapshot
        if before is None or before.instance == snapshot.instance or not self._keeps_ended:
            return
        for key, value in before.values.items():
            metric = metric_of(key)
            if metric.kind != "gauge":
                merge(metric, self._ended, key, value)
