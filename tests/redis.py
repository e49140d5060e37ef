"""A real Redis for tests: the system's own server, started on a port and ended again."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

SKIP_REASON = "no redis-server: `apt-get install redis-server` (.ci/run does so), and these tests run too"


class RedisServer:
    """One that can be stopped and started again; it keeps nothing on disk."""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            ["redis-server", *options], cwd=self._directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with Redis.from_url(self.url) as client:
            for _ in range(500):
                try:
                    client.ping()
                except RedisError:
                    time.sleep(0.02)
                else:
                    return
        raise TimeoutError("redis-server does not answer")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def run_redis(directory: Path, port: int) -> Iterator[RedisServer]:
    """Such a server. The test is skipped where there is none."""
    if shutil.which("redis-server") is None:
        pytest.skip(SKIP_REASON)
    server = RedisServer(directory, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
