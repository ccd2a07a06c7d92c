"""Attestation results (EAR) over HTTP: for verdicts, and the keys to verify them."""

import asyncio
import re

from aiohttp import web

from trustfabric.db import ear
from trustfabric.domain.attestation.ear_result import result_of
from trustfabric.domain.ids import AttestationId
from trustfabric.drivers.ear import Signer
from trustfabric.errors import MalformedError, NotFoundError
from trustfabric.http.auth import PRINCIPAL
from trustfabric.http.face import FACE, Face
from trustfabric.http.jwks import Keys
from trustfabric.http.parse import Query, path_id
from trustfabric.http.reply import reply

routes = web.RouteTableDef()

JWKS = "/.well-known/jwks.json"
_NONCE = re.compile(r"[A-Za-z0-9_-]{8,88}")
"""As EAT has it, and safe in any URL."""
_CACHED_S = 300


@routes.get(JWKS)
async def list_keys(request: web.Request) -> web.Response:
    """Say with which keys results are signed; anybody may ask."""
    Query(request)
    face = request.app[FACE]

    async def read() -> Keys:
        await _signer(face)
        return await face.database.glance(ear.list_keys)

    response = reply({"keys": await face.jwks.get(read, face.now)})
    response.headers["Cache-Control"] = f"public, max-age={_CACHED_S}"
    return response


@routes.get(r"/api/attestation/{id:\d+}/ear")
async def issue_result(request: web.Request) -> web.Response:
    query = Query(request, "nonce")
    nonce = query.text("nonce")
    if nonce is not None and not _NONCE.fullmatch(nonce):
        raise MalformedError("nonce: 8 to 88 of A-Z, a-z, 0-9, - and _")
    face = request.app[FACE]
    attestation_id = AttestationId(path_id(request))
    async with face.database.reading() as conn:
        recorded = await ear.get_recorded(
            conn, request[PRINCIPAL].owner, attestation_id
        )
    if recorded is None:
        raise NotFoundError(f"no attestation {attestation_id}")
    result = result_of(recorded, face.now(), issuer=face.url(), nonce=nonce)
    signer = await _signer(face)
    response = reply(
        {
            "attestation_id": attestation_id,
            "ear": signer.sign(result.claims),
            "kid": signer.kid,
            "status": result.status,
            "issued_at": result.issued_at,
            "expires_at": result.expires_at,
            "jwks_uri": face.url() + JWKS,
        }
    )
    response.headers["Cache-Control"] = "no-store"
    return response


async def _signer(face: Face) -> Signer:
    """Return what signs now, its public key published before anything is signed."""
    signer = await asyncio.to_thread(face.ear_key.signer)
    if signer.kid not in face.published_keys:
        async with face.database.writing() as conn:
            await ear.add_key(conn, signer.kid, signer.jwk, face.runtime_id)
        face.published_keys.add(signer.kid)
        face.jwks.forget()
    return signer
