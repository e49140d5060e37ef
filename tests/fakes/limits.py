"""Limits that no test reaches unless it means to."""

from datetime import timedelta

from integration_server.sidecar.limits import HttpLimits

USUAL = HttpLimits(
    connections=500,
    body_bytes=1 << 20,
    head_time=timedelta(seconds=60),
    body_time=timedelta(seconds=60),
    idle_time=timedelta(seconds=60),
)
