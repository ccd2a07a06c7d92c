"""JSON out: one encoder, the version as ETag, the next page as Link."""

from typing import Any

import orjson
from aiohttp import web
from yarl import URL

_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC


def dump(value: Any) -> bytes:
    """Encode; times in UTC with `Z`, enums and UUIDs as their text."""
    return orjson.dumps(value, option=_OPTIONS)


def reply(
    value: Any,
    *,
    status: int = 200,
    version: int | None = None,
    location: str | None = None,
) -> web.Response:
    """Answer with one JSON document."""
    headers = {}
    if version is not None:
        headers["ETag"] = f'"{version}"'
    if location is not None:
        headers["Location"] = location
    return web.Response(
        body=dump(value),
        status=status,
        content_type="application/json",
        headers=headers,
    )


def page(
    request: web.Request, body: Any, *, count: int, limit: int, last: int
) -> web.Response:
    """Answer with one page; a full one links to what follows the id `last`."""
    response = reply(body)
    if count == limit:
        url = URL(request.path).with_query({**request.query, "cursor": str(last)})
        response.headers["Link"] = f'<{url}>; rel="next"'
    return response
