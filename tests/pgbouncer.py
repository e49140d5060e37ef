"""PgBouncer in transaction mode in front of PostgreSQL: each transaction may use another session."""

import contextlib
import getpass
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
requires_pgbouncer = pytest.mark.skipif(
    PROGRAM is None, reason="PgBouncer is not installed: apt-get install pgbouncer (or brew install pgbouncer)"
)

SESSIONS = 3  # fewer than the connections of one server, so that clients share them
_TIMEOUT = 30.0


@contextmanager
def run_pgbouncer(url: str) -> Iterator[str]:
    """Run a PgBouncer; the URL of the database through it."""
    assert PROGRAM is not None
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    folder.chmod(0o755)  # it does not run as root, and reads its file as another user
    port = _free_port()
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(_configuration(url, port))
    log = folder / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [PROGRAM, *_as_owner_of(url), str(configuration)], stdout=output, stderr=output, stdin=subprocess.DEVNULL
        ) as process,
    ):
        try:
            _wait_until_listening(process, port, log)
            yield f"postgresql://anybody@127.0.0.1:{port}/{make_url(url).database}"
        finally:
            process.terminate()
            process.wait(_TIMEOUT)
            shutil.rmtree(folder)


def _configuration(url: str, port: int) -> str:
    target = make_url(url)
    host = target.query.get("host") or target.host
    return (
        "[databases]\n"
        f"* = host={host} port={target.port or 5432} user={target.username}\n"
        "[pgbouncer]\n"
        "listen_addr = 127.0.0.1\n"
        f"listen_port = {port}\n"
        "unix_socket_dir =\n"
        "auth_type = any\n"  # every client is the user above: only this machine can connect, to test data
        "pool_mode = transaction\n"
        f"default_pool_size = {SESSIONS}\n"
        "server_round_robin = 1\n"  # the next session each time, not the last used one
        "max_client_conn = 500\n"
        "server_login_retry = 1\n"
    )


def _as_owner_of(url: str) -> list[str]:
    """Options to run, if started by root, as the user of PostgreSQL, who owns the folder of its socket."""
    host = make_url(url).query["host"]
    return ["-u", Path(str(host)).owner()] if getpass.getuser() == "root" else []


def _free_port() -> int:
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _wait_until_listening(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    end = time.monotonic() + _TIMEOUT
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@pytest.fixture
def pooled_url(postgres_url: str) -> Iterator[str]:
    """The URL of a new, migrated database behind a PgBouncer in transaction mode."""
    with run_pgbouncer(postgres_url) as url:
        yield url
