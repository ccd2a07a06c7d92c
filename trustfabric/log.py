"""The log, set up once: events with fields, on stderr, without secrets."""

import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog
from pydantic import SecretStr

MASK = "***"
_SECRET_KEY = re.compile(
    r"(^|_)(password|passwd|secret|token|authorization|cookie|credential|api_key)s?$"
)
_URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+(?=@)")
_BEARER = re.compile(r"\b(Bearer\s+)\S+|\beyJ[\w-]+\.[\w-]+\.[\w-]+")

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def set_up(level: str = "info", style: str = "auto") -> None:
    """Send the log to stderr: a JSON object a line, or readable on a terminal."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(
        default=str
    )
    if console:
        renderer = structlog.dev.ConsoleRenderer(
            exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,  # without locals: they hold secrets
            mask_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def mask_secrets(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> Mapping[str, Any]:
    """Mask values by their key, and passwords and tokens inside any text."""
    return {key: _masked(key, value) for key, value in event.items()}


def _masked(key: str, value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, SecretStr) or _SECRET_KEY.search(key.lower()):
        return MASK
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {inner: _masked(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", item) for item in value]
    return value


def mask_text(text: str) -> str:
    """Mask the password of each address and each bearer token in a text."""
    text = _URL_PASSWORD.sub(rf"\1:{MASK}", text)
    return _BEARER.sub(lambda found: f"{found[1] or ''}{MASK}", text)
