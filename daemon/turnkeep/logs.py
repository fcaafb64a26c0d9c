"""Structured logs: one event a line, as JSON or for a console."""

from __future__ import annotations

import logging
import sys

import structlog

from turnkeep.errors import InvalidRequest

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(log_format: str, level: str) -> None:
    """Send our own and the libraries' logs to standard error.

    `auto` means for a console if that is one, JSON otherwise.

    Raises:
        InvalidRequest: format or level is not known.
    """
    if level not in _LEVELS:
        raise InvalidRequest(f"log_level {level!r}: choose from {', '.join(_LEVELS)}")
    if log_format not in ("auto", "json", "console"):
        raise InvalidRequest(f"log_format {log_format!r}: choose auto, json or console")
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if console
        else structlog.processors.JSONRenderer()
    )
    # Without local variables: they hold what sandboxes and their users keep secret.
    traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    exceptions: list[structlog.typing.Processor] = (
        [] if console else [structlog.processors.ExceptionRenderer(traceback)]
    )
    structlog.configure(
        processors=[*shared, *exceptions, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[*exceptions, _drop_meta, renderer]
        )
    )
    logging.basicConfig(handlers=[handler], level=max(_LEVELS[level], logging.WARNING), force=True)


def _drop_meta(
    logger: structlog.typing.WrappedLogger, name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return structlog.stdlib.ProcessorFormatter.remove_processors_meta(logger, name, event)
