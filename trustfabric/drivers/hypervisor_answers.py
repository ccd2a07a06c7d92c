"""What a hypervisor's API answers: read within bounds, refusals as our errors."""

import asyncio
from collections.abc import Mapping
from typing import Final

import aiohttp
import orjson

from trustfabric.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)

_BODY_CAP: Final = 1 << 20
_DETAIL_CAP: Final = 300
_CREDENTIALS_REFUSED: Final = frozenset({401, 403})
_TRANSIENT: Final = frozenset({408, 425, 429})
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_CLIENT_ERROR: Final = 400
SERVER_ERROR: Final = 500
REDIRECT: Final = 300


def parse_object(body: bytes) -> Mapping[str, object]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidError("the hypervisor's answer is no JSON") from error
    if not isinstance(value, dict):
        raise InvalidError("the hypervisor's answer is no JSON object")
    return value


async def read_chunk(response: aiohttp.ClientResponse, within_s: float) -> bytes | None:
    """Return what came, nothing at the end; None when nothing came in time."""
    try:
        async with asyncio.timeout(within_s):
            return await response.content.readany()
    except TimeoutError:
        return None


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """Read a small body whole; a big one is refused rather than kept."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _BODY_CAP:
            raise InvalidError("the hypervisor's answer is too long")
    whole = bytes(body)
    return whole if response.status < REDIRECT else _without_token(response, whole)


def _without_token(response: aiohttp.ClientResponse, body: bytes) -> bytes:
    """Hide what some print of a request that they refuse."""
    sent = response.request_info.headers.get("Authorization", "")
    token = sent.removeprefix("Bearer ").encode()
    return body.replace(token, b"***") if token else body


def raise_for(status: int, body: bytes, doing: str) -> None:
    if status < REDIRECT:
        return
    detail = body[:_DETAIL_CAP].decode("utf-8", "replace")
    text = f"{doing}: the hypervisor answered {status}: {detail}"
    if status in _CREDENTIALS_REFUSED:
        raise UnavailableError(text, cause="credentials")
    if status == _NOT_FOUND:
        raise NotFoundError(text)
    if status == _CONFLICT:
        raise ConflictError(text)
    if _CLIENT_ERROR <= status < SERVER_ERROR and status not in _TRANSIENT:
        raise InvalidError(text)
    redirects = status < _CLIENT_ERROR
    raise UnavailableError(text, cause="answer", redirects=redirects)
