"""Logging: one line for each event on standard error, as JSON, or formatted for a terminal.

Libraries log at WARNING whatever the level, because at DEBUG the HTTP libraries write headers and URLs, which contain
tokens and codes. `redaction.py` is the last processor.
"""

import logging
import sys
from typing import Literal

import structlog

from integration_server.redaction import redact, strip_exception_text

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


def configure_logging(level: Level) -> None:
    """Set up logging for the process. `level` applies to our own loggers."""
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        strip_exception_text,
        redact,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=processors))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
