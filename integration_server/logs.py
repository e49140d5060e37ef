"""Logging: one line for each event on standard error, as JSON, or formatted for a terminal. One that cannot be written
is lost, and never fails what it is about.

Libraries log at WARNING whatever the level, because at DEBUG the HTTP libraries write headers and URLs, which contain
tokens and codes. `redaction.py` is the last processor.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TextIO, TypeAlias

import structlog

from integration_server.observability.observed_calls import AccessLog, TerminalLog, add_ids
from integration_server.redaction import redact, redact_text, strip_exception_text
from integration_server.standard_streams import unfailing

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
AnyAccessLog: TypeAlias = AccessLog | TerminalLog


@dataclass(frozen=True, slots=True)
class _AddProcess:
    """The structlog processor that adds the name of the process, if it has one."""

    process: str

    def __call__(self, _logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**event, "process": self.process} if self.process else event


def is_terminal() -> bool:
    """Whether the log goes to a terminal."""
    return unfailing(sys.stderr).isatty()


def configure_logging(
    level: Level, *, process: str = "", terminal: bool | None = None, stream: TextIO | None = None
) -> None:
    """Set up logging for the process. `level` applies to our own loggers.

    `process` is in each event, where several processes write one log. `terminal`: whether it goes to a terminal, which
    a process that writes to a pipe does not see. `stream` takes the place of standard error; one that fails is for
    negative controls.
    """
    stream = stream or unfailing(sys.stderr)
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_ids,
        _AddProcess(process),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        strip_exception_text,
        redact,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if (is_terminal() if terminal is None else terminal)
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=processors))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


@contextmanager
def written_access_log(*, is_on: bool) -> Iterator[AnyAccessLog | None]:
    """The access log of this process, all of which is written at the end; None if it is off."""
    log = new_access_log() if is_on else None
    try:
        yield log
    finally:
        if log is not None:
            log.flush()


def new_access_log(stream: TextIO | None = None) -> AnyAccessLog | None:
    """The access log of this process, in the form of its log; None if the log's level leaves it out.

    `stream` as in `configure_logging`.
    """
    config = structlog.get_config()
    *processors, renderer = config["processors"]
    logger = structlog.get_logger(__name__)
    if not logger.is_enabled_for(logging.INFO):
        return None
    if not isinstance(renderer, structlog.processors.JSONRenderer):
        return TerminalLog(logger)
    process = next((processor.process for processor in processors if isinstance(processor, _AddProcess)), "")
    write = partial(print, end="", file=stream or unfailing(sys.stderr), flush=True)
    return AccessLog(write, redact_text, process=process)
