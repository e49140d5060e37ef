"""Snapshots of one process's metrics: JSON that another process of this server reads over a Unix socket.

A thread of its own sends it, so that a snapshot neither waits for the event loop nor holds it: the thread gives up the
interpreter after each metric. A snapshot is untrusted: the process that serves the internet sends one.
"""

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from integration_server.observability.metrics import MAX_LABEL_LENGTH, METRICS, Metric, Metrics, SampleKey

MAX_SNAPSHOT_BYTES = 16 * 1024 * 1024  # several times what all metrics with all their series take

_SEND_TIMEOUT = 2.0  # seconds; the reader has a shorter one
_RETRY_INTERVAL = 0.5  # seconds

_METRICS_BY_SAMPLE: Mapping[str, Metric] = {name: metric for metric in METRICS for name in metric.sample_names}


class InvalidSnapshot(ValueError):
    """What a process has sent is not a snapshot of declared metrics."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The samples of a process. `instance` differs for each start of the process."""

    instance: str
    values: Mapping[SampleKey, float]


def metric_of(sample: SampleKey) -> Metric:
    """The metric that a sample belongs to. Raises `KeyError`."""
    return _METRICS_BY_SAMPLE[sample[0]]


def take_snapshot(metrics: Metrics, instance: str, pause: Callable[[float], object] = time.sleep) -> Snapshot:
    """Read the metrics of this process. Calls `pause(0)` between metrics, which lets other threads run."""
    values: dict[SampleKey, float] = {}
    for samples in metrics.samples():
        values.update(samples)
        pause(0)
    return Snapshot(instance, values)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The snapshot as JSON."""
    samples = [[name, labels, value] for (name, labels), value in snapshot.values.items()]
    return json.dumps({"instance": snapshot.instance, "samples": samples}).encode()


def decode_snapshot(data: bytes, allowed: Collection[Metric] | None = None) -> Snapshot:
    """The snapshot in JSON. Raises `InvalidSnapshot` unless all samples are of declared metrics, of the `allowed` ones.

    None allows all of them.
    """
    try:
        message = json.loads(data)
        values = {_key(name, labels, allowed): _value(value) for name, labels, value in message["samples"]}
        return Snapshot(str(message["instance"])[:MAX_LABEL_LENGTH], values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidSnapshot("not a snapshot of declared metrics") from error


def _key(name: str, labels: Any, allowed: Collection[Metric] | None) -> SampleKey:  # noqa: ANN401  # JSON
    metric = _METRICS_BY_SAMPLE[name]
    names = (*metric.labels, "le") if name.endswith("_bucket") and metric.kind == "histogram" else tuple(metric.labels)
    key = tuple((label, value) for label, value in labels)
    if tuple(label for label, _ in key) != names or (allowed is not None and metric not in allowed):
        raise InvalidSnapshot(metric.name)
    if not all(isinstance(value, str) and len(value) <= MAX_LABEL_LENGTH for _, value in key):
        raise InvalidSnapshot(metric.name)
    return name, key


def _value(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidSnapshot("not a finite number")
    return float(value)


def _send(connection: socket.socket, take: Callable[[], bytes]) -> None:
    """Send a snapshot. An error ends this response, and not the thread."""
    try:
        connection.sendall(take())
    except OSError:  # the reader has gone
        pass
    except Exception as error:
        structlog.get_logger(__name__).error("metrics_not_sent", kind=type(error).__qualname__)


@contextmanager
def snapshot_server(path: Path, take: Callable[[], bytes]) -> Iterator[None]:
    """Send what `take` returns to everybody who connects to the Unix socket, from a thread, until exit."""
    path.unlink(missing_ok=True)  # of the process that this one replaces
    is_ending = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)

        def answer() -> None:
            while not is_ending.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:  # the limit of open files
                    time.sleep(_RETRY_INTERVAL)
                    continue
                with connection:
                    connection.settimeout(_SEND_TIMEOUT)
                    if not is_ending.is_set():
                        _send(connection, take)

        thread = threading.Thread(target=answer, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_ending.set()
            with suppress(OSError), socket.socket(socket.AF_UNIX) as waker:
                waker.connect(str(path))
            thread.join(_SEND_TIMEOUT)
