"""The commands that serve: `serve`, `sidecar` and `dev`."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from datetime import timedelta
from typing import NoReturn

import structlog
import uvloop

from integration_server.bootstrap import running_grpc_server
from integration_server.cli.shared import command, load_settings, prepare_database, report_errors
from integration_server.command_errors import CommandFailed, end_with
from integration_server.lifecycle import freeze_gc, stop_signals
from integration_server.logs import configure_logging, is_terminal
from integration_server.observability.listener import LocalSource
from integration_server.observability.metrics import Metrics, certificate_samples
from integration_server.providers.built_in import register_built_in
from integration_server.providers.factory import ProviderFactory
from integration_server.settings import Settings
from integration_server.shared_memory import SharedMemory
from integration_server.sidecar.grpc_client import ServerClient, TlsFiles
from integration_server.sidecar_settings import SidecarSettings
from integration_server.standard_streams import unfailing
from integration_server.supervisor import ChildSpec, Supervisor, SupervisorChannel, execute, fork_into
from integration_server.wiring.auth import import_for_workers
from integration_server.wiring.metrics_listener import measured_process, running_metrics_listener
from integration_server.wiring.sidecar import SidecarLink, new_sidecar_link, running_sidecar
from integration_server.wiring.system import utc_now
from integration_server.wiring.workers import Worker, claimed_port, explain_worker_count, worker_count, worker_names

# Above what a stop takes: the sidecar gives requests in progress 5 seconds, the server calls SHUTDOWN_GRACE_SECONDS.
_STOP_MARGIN = timedelta(seconds=30)

# The environment of the sidecar's process, and of the metrics listener's: what Python needs, and no setting.
_PYTHON_VARIABLES = frozenset({"HOME", "LANG", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV"})
_PYTHON_VARIABLE_PREFIXES = ("LC_", "PYTHON")

# What exporting spans reads besides. The headers may have a key of the collector, which accepts spans with it.
_TRACES_VARIABLES = frozenset({"OTEL_EXPORTER_OTLP_HEADERS", "SSL_CERT_DIR", "SSL_CERT_FILE"})


@report_errors
def serve() -> None:
    """Serve gRPC and the HTTP sidecar, each in a process of its own, until SIGTERM or Ctrl-C."""
    settings, environment = uvloop.run(load_settings())
    configure_logging(settings.log_level, process="supervisor")
    count = worker_count(settings)
    with new_sidecar_link(count) as link, ExitStack() as stack:
        check, workers = _check_nothing, [Worker()]
        if count > 1:
            claim = stack.enter_context(claimed_port(settings.grpc_address, count))
            settings = settings.model_copy(update={"grpc_address": claim.address})
            memory = SharedMemory(count)
            check, workers = claim.check, [Worker.of(memory, number) for number in range(count)]
        servers = [_server(settings, environment, link.of_worker(worker.number), worker) for worker in workers]
        sidecar = ChildSpec(
            "sidecar",
            execute(
                _command_of("sidecar_process"),
                program_environment(os.environ, exports_traces=settings.traces_endpoint is not None),
            ),
            _STOP_MARGIN,
            reports=["sidecar"],
            config={
                "settings": settings.model_dump(mode="json", include=set(SidecarSettings.model_fields)),
                "sockets": [str(socket) for socket in link.sockets],
                "token": link.token,
                "terminal": is_terminal(),
                "metrics": settings.metrics_address is not None,
            },
        )
        register_built_in(ProviderFactory())  # reads the catalogue for all workers
        import_for_workers(settings)
        freeze_gc()  # the workers share what is imported, until something writes to it
        # The listener of the metrics stops last: it also shows how the others stop.
        listener = _metrics_listener(settings, link, [*worker_names(count), "sidecar"])
        code = Supervisor([*listener, *servers, sidecar], check=check, drain_time=settings.drain).run()
    sys.exit(code)


def main() -> NoReturn:
    """Run `serve`, without options."""
    end_with(serve)


def _check_nothing() -> None:
    """A server with one worker does not share its port."""


def _server(settings: Settings, environment: Mapping[str, str], link: SidecarLink, worker: Worker) -> ChildSpec:
    """The process of a worker."""
    memory = worker.memory
    return ChildSpec(
        worker.name,
        fork_into(lambda: _serve_grpc(settings, environment, link, worker)),
        settings.shutdown_grace + _STOP_MARGIN,
        reports=["grpc"],
        group="servers",
        beats=None if memory is None else lambda: memory.beats[worker.number],
        on_end=lambda: None if memory is None else memory.clear_calls(worker.number),
    )


def _metrics_listener(settings: Settings, link: SidecarLink, names: Sequence[str]) -> Sequence[ChildSpec]:
    """The process of the metrics listener, if there is one."""
    if settings.metrics_address is None:
        return ()
    return [
        ChildSpec(
            "metrics",
            execute(_command_of("metrics_process"), program_environment(os.environ)),
            _STOP_MARGIN,
            reports=["metrics"],
            config={
                "address": settings.metrics_address,
                "may_move": settings.metrics_may_move,
                "sockets": {name: str(link.metrics_socket(name)) for name in names},
                "log_level": settings.log_level,
                "terminal": is_terminal(),
            },
        )
    ]


def _command_of(process: str) -> Sequence[str]:
    """What Python runs to be a process of this server (`__main__.py`)."""
    return ["-m", "integration_server", process]


def program_environment(environment: Mapping[str, str], *, exports_traces: bool = False) -> Mapping[str, str]:
    """The environment of a process that must not have the server's: without settings and secrets."""
    names = _PYTHON_VARIABLES | _TRACES_VARIABLES if exports_traces else _PYTHON_VARIABLES
    return {
        name: value
        for name, value in environment.items()
        if name in names or name.startswith(_PYTHON_VARIABLE_PREFIXES)
    }


def _serve_grpc(settings: Settings, environment: Mapping[str, str], link: SidecarLink, worker: Worker) -> int:
    """Be the process of a worker; the exit code."""

    @command
    async def serve_grpc() -> None:
        channel.receive_config()
        prepared = await prepare_database(settings)
        metrics = Metrics(is_on=settings.metrics_address is not None)
        async with (
            measured_process(metrics, worker.name, link.metrics_socket(worker.name) if metrics.is_on else None),
            running_grpc_server(prepared, environment, link, metrics=metrics, worker=worker) as server,
            channel.commands(server.drain) as stop,
        ):
            freeze_gc()
            channel.report_ready(grpc=server.address)
            explain_worker_count(settings)
            await stop.wait()

    channel = SupervisorChannel()
    configure_logging(settings.log_level, process=worker.name, terminal=is_terminal())
    if settings.skip_confirmation and not settings.dev_mode and worker.does_background_work:
        structlog.get_logger(__name__).warning("confirmation_skipped", setting="SKIP_CONFIRMATION")
    try:
        serve_grpc()
    except CommandFailed as failure:
        failure.report(as_json=False)
        return failure.exit_code
    return 0


@command
async def sidecar() -> None:
    """Serve only the HTTP sidecar: it listens on SIDECAR_ADDRESS and calls the server at GRPC_ADDRESS."""
    settings, _ = await load_settings(needs_key=False)
    metrics = Metrics(is_on=settings.metrics_address is not None)
    draining = asyncio.Event()
    client = remote_client(settings)
    metrics.read(lambda: certificate_samples(client.validity_periods(), utc_now()))
    async with (
        stop_signals(draining.set, settings.drain) as stop,
        measured_process(metrics, "sidecar"),
        AsyncExitStack() as stack,
        running_sidecar(settings, client, metrics, draining) as url,
    ):
        urls = {"sidecar": url, "grpc": str(settings.grpc_address)}
        if settings.metrics_address is not None:
            sources = {"sidecar": LocalSource(metrics)}
            listener = running_metrics_listener(settings.metrics_address, sources, may_move=settings.metrics_may_move)
            urls["metrics"] = await stack.enter_async_context(listener)
        structlog.get_logger(__name__).info("serving", **urls)
        await stop.wait()


def remote_client(settings: Settings) -> ServerClient:
    """A client of the server at GRPC_ADDRESS, for a sidecar that runs alone. Raises `InvalidFile`."""
    tls_files = TlsFiles(
        authorities=settings.sidecar_tls_ca_file,
        certificate=settings.sidecar_tls_cert_file,
        key=settings.sidecar_tls_key_file,
        token=settings.sidecar_token_file,
        server_name=settings.sidecar_tls_server_name,
    )
    return ServerClient(str(settings.grpc_address.reachable), tls_files=tls_files)


@command
async def dev() -> None:
    """Serve in dev mode with a sandbox provider, and connect a sample account over the OAuth flow."""
    from rich.console import Console  # noqa: PLC0415  # `serve`, whose workers share its memory, needs none of it

    from integration_server.dev import DEFAULT_SANDBOX_ADDRESS, run_dev  # noqa: PLC0415

    defaults = {"DEV_MODE": "true", "LOG_LEVEL": "WARNING", "SANDBOX_ADDRESS": DEFAULT_SANDBOX_ADDRESS}
    settings, environment = await load_settings(defaults)
    settings = await prepare_database(settings)
    async with stop_signals() as stop:
        # What it prints is a log: a call does not fail because nobody reads its line.
        await run_dev(settings, environment, stop, Console(file=unfailing(sys.stdout)))
