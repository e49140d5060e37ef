"""HTTP limits that only tests of the limits reach."""

from datetime import timedelta

from integration_server.sidecar.http_limits import HttpLimits

LIMITS = HttpLimits(
    connections=500,
    body_bytes=1 << 20,
    header_timeout=timedelta(seconds=60),
    body_timeout=timedelta(seconds=60),
    keepalive_timeout=timedelta(seconds=60),
    request_interval=timedelta(0),
    readiness_max_age=timedelta(0),
)
