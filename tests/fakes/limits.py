"""HTTP limits that only tests of the limits reach."""

from datetime import timedelta

from integration_server.sidecar.middleware import HttpLimits

LIMITS = HttpLimits(
    connections=500,
    body_bytes=1 << 20,
    header_timeout=timedelta(seconds=60),
    body_timeout=timedelta(seconds=60),
    keepalive_timeout=timedelta(seconds=60),
)
