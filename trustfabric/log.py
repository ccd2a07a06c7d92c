"""The log, set up once: events with fields, on stderr, without secrets."""

import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any

import orjson
import structlog
from pydantic import SecretStr

MASK = "***"
_SECRET_KEY = re.compile(
    r"(^|_)(password|passwd|secret|token|authorization|cookie|credential|api_key)s?$"
)
_URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+(?=@)")
_BEARER = re.compile(r"\b(Bearer\s+)\S+|\beyJ[\w-]+\.[\w-]+\.[\w-]+")

_JSON = orjson.OPT_NON_STR_KEYS
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def set_up(level: str = "info", style: str = "auto") -> None:
    """Send the log to stderr: a JSON object a line, or readable on a terminal."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = _as_json
    if console:
        renderer = structlog.dev.ConsoleRenderer(
            exception_formatter=structlog.dev.plain_traceback
        )
    described: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    ]
    rendered: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,  # without locals: they hold secrets
        mask_secrets,
        renderer,
    ]
    structlog.configure(
        processors=[*described, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    _take_in_libraries(described, rendered)


def _take_in_libraries(
    described: list[structlog.typing.Processor],
    rendered: list[structlog.typing.Processor],
) -> None:
    """Take in what libraries log through Python's own logging, from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *described],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *rendered,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def mask_secrets(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> Mapping[str, Any]:
    """Mask values by their key, and passwords and tokens inside any text."""
    return {key: _masked(key, value) for key, value in event.items()}


def _masked(key: str, value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, SecretStr) or _is_secret(key):
        return MASK
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {inner: _masked(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", item) for item in value]
    return value


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    return _SECRET_KEY.search(key.lower()) is not None


def mask_text(text: str) -> str:
    """Mask the password of each address and each bearer token in a text."""
    # What an expression can't do without is looked for first: most texts have none.
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{MASK}", text)
    if "Bearer" in text or "eyJ" in text:
        text = _BEARER.sub(lambda found: f"{found[1] or ''}{MASK}", text)
    return text


def _as_json(_logger: object, _method: str, event: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(event, default=str, option=_JSON).decode()
    except orjson.JSONEncodeError:
        # Text that is no UTF-8, a number beyond 64 bits: slower, but it takes all.
        return json.dumps(event, default=str, skipkeys=True)
