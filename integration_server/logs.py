"""How this process logs: one line an event on standard error, JSON unless a person is watching.

Libraries are held at WARNING whatever the level: at DEBUG the HTTP ones write headers and addresses, which carry
tokens and codes. Behind everything stands `redaction.py`.
"""

import logging
import sys
from typing import Literal

import structlog

from integration_server.redaction import redact, strip_exception_text

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


def configure_logging(level: Level) -> None:
    """Set the process's logging up. Our own loggers follow `level`."""
    is_terminal = sys.stderr.isatty()
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        strip_exception_text,
        redact,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*before, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=before))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
