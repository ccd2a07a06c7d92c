"""Artifacts of runs, recorded from outside: by the run itself, or by a person.

What is recorded is content (`text` or `content_base64`), which is kept and served as
it came but for the playbook's secrets, or the address of something kept elsewhere.
"""

import base64
import binascii
import hashlib
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import web
from pydantic import Field

from trustfabric.db.artifacts import (
    LARGE_OBJECT,
    NewArtifact,
    add_artifact,
    get_artifact,
)
from trustfabric.db.runs import lock_run
from trustfabric.domain.ids import RunId
from trustfabric.domain.runs import Run, RunStatus
from trustfabric.drivers.secrets import Masker
from trustfabric.errors import InvalidError, UnauthenticatedError
from trustfabric.http.auth import require
from trustfabric.http.face import FACE
from trustfabric.http.parse import Body, path_id, read_body
from trustfabric.http.reply import reply
from trustfabric.http.tokens import Principal, Role
from trustfabric.http.views import artifact_view

routes = web.RouteTableDef()

PATH = r"/api/trust/remediation/runs/{id:\d+}/artifacts"
METADATA_BYTES = 8192
_OURS = frozenset({"execution-log", "result", "output", "ansible-events", "requests"})
_PART = r"[A-Za-z0-9_+@=,-][A-Za-z0-9_+@=,. -]{0,99}"
_NAME = rf"^{_PART}(/{_PART}){{0,3}}$"


class NewArtifactBody(Body):
    artifact_type: str = Field("evidence", pattern=r"^[a-z][a-z0-9-]{0,63}$")
    name: str | None = Field(None, pattern=_NAME)
    media_type: str = Field(
        "application/octet-stream",
        pattern=r"^[a-z0-9.+-]{1,64}/[a-z0-9.+-]{1,64}(; charset=[a-z0-9-]{1,20})?$",
    )
    metadata: dict[str, Any] = Field(default_factory=dict)
    text: str | None = None
    content_base64: str | None = None
    uri: str | None = Field(None, min_length=1, max_length=2000)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    size: int | None = Field(None, ge=0, le=2**62)


@routes.post(PATH)
async def record_artifact(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    body = await read_body(request, NewArtifactBody)
    run_id, face = RunId(path_id(request)), request.app[FACE]

    async with face.database.writing() as conn:
        run = await lock_run(conn, run_id, owner_id=principal.owner)
        _check_lease(principal, run)
        masker = face.masker(run.spec)
        made = await add_artifact(
            conn, _artifact(body, run, principal, masker, _token(request))
        )
        found = await get_artifact(conn, principal.owner, run_id, made)
    assert found is not None
    return reply(
        artifact_view(found),
        status=201,
        location=f"/api/trust/remediation/runs/{run_id}/artifacts/{made}",
    )


def _check_lease(principal: Principal, run: Run) -> None:
    """Raise where a run's own token outlived its lease while it waited for the row."""
    scope = principal.run
    if scope is not None and not (
        run.status is RunStatus.RUNNING and run.lease_epoch == scope.lease_epoch
    ):
        raise UnauthenticatedError("the run that this token was for is over")


def _artifact(
    body: NewArtifactBody, run: Run, principal: Principal, masker: Masker, token: Masker
) -> NewArtifact:
    if body.artifact_type in _OURS:
        raise InvalidError(f"artifact_type: {body.artifact_type} is the runtime's own")
    named = {} if body.name is None else {"name": body.name}
    metadata = token.mask_document(masker.mask_document({**body.metadata, **named}))
    if len(orjson.dumps(metadata)) > METADATA_BYTES:
        raise InvalidError(f"metadata: more than {METADATA_BYTES} bytes")
    content = _content(body)
    if content is not None:
        content = token.mask_bytes(masker.mask_bytes(content))
    return NewArtifact(
        run_id=run.id,
        artifact_type=body.artifact_type,
        uri=LARGE_OBJECT
        if content is not None
        else token.mask(masker.mask(_elsewhere(body))),
        media_type=body.media_type,
        sha256=hashlib.sha256(content).hexdigest()
        if content is not None
        else _stated(body.sha256, "sha256"),
        size=len(content) if content is not None else _stated(body.size, "size"),
        recorded_by=principal.actor,
        metadata=metadata,
        content=content,
    )


def _content(body: NewArtifactBody) -> bytes | None:
    """Return what is to be kept; None where it is kept elsewhere."""
    given = [body.text, body.content_base64, body.uri]
    if sum(one is not None for one in given) != 1:
        raise InvalidError("body: one of text, content_base64 and uri is required")
    if body.uri is not None:
        return None
    if body.sha256 is not None or body.size is not None:
        raise InvalidError("sha256, size: said of what is at a uri only")
    if body.text is not None:
        return body.text.encode()
    assert body.content_base64 is not None
    try:
        return base64.b64decode(body.content_base64, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("content_base64: not base64") from None


def _elsewhere(body: NewArtifactBody) -> str:
    uri = body.uri or ""
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise InvalidError("uri: not an address") from None
    if parts.scheme not in {"https", "http", "s3", "gs", "oci", "file"}:
        raise InvalidError("uri: none of https, http, s3, gs, oci, file")
    if "@" in parts.netloc or any(not c.isprintable() or c == " " for c in uri):
        raise InvalidError("uri: with credentials, blanks or control characters")
    return uri


def _stated(value: Any, name: str) -> Any:
    if value is None:
        raise InvalidError(f"{name}: required of what is kept elsewhere")
    return value


def _token(request: web.Request) -> Masker:
    _, _, token = request.headers.get("Authorization", "").partition(" ")
    return Masker([token.strip()])
