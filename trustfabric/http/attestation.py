"""Recorded verdicts over HTTP, with what they rest on."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from trustfabric.actors.policies import stored_of
from trustfabric.db import verdicts
from trustfabric.domain.attestation.stored import dump as dump_stored
from trustfabric.domain.ids import AttestationId, InstanceId
from trustfabric.domain.trust import AttestationStatus
from trustfabric.errors import (
    NotFoundError,
)
from trustfabric.http.auth import PRINCIPAL, require
from trustfabric.http.face import FACE
from trustfabric.http.parse import Query, path_id
from trustfabric.http.reply import page, reply
from trustfabric.http.tokens import Role

routes = web.RouteTableDef()

_ONE = r"/api/attestation/{id:\d+}"


@routes.get("/api/attestation")
async def list_verdicts(request: web.Request) -> web.Response:
    query = Query(request, "runtime_vm_instance_id", "status", "limit", "cursor")
    limit = query.limit()
    instance = query.integer("runtime_vm_instance_id", minimum=1)
    only = verdicts.Filter(
        instance_id=None if instance is None else InstanceId(instance),
        status=query.choice("status", AttestationStatus),
    )
    async with request.app[FACE].database.reading() as conn:
        rows = await verdicts.list_verdicts(
            conn, request[PRINCIPAL].owner, only, before=query.cursor(), limit=limit
        )
    views = [_verdict_view(row) for row in rows]
    last = rows[-1].id if rows else 0
    return page(request, views, count=len(rows), limit=limit, last=last)


@routes.get(_ONE)
async def get_verdict(request: web.Request) -> web.Response:
    Query(request)
    attestation_id = AttestationId(path_id(request))
    async with request.app[FACE].database.reading() as conn:
        row = await verdicts.get_verdict(conn, request[PRINCIPAL].owner, attestation_id)
    if row is None:
        raise NotFoundError(f"no attestation {attestation_id}")
    return reply(
        {
            **_verdict_view(row),
            "parsed_claims": row.claims,
            "signer_metadata": row.signer,
            "nonce_sha256": row.nonce_sha256,
            "basis_sha256": row.basis_sha256,
        }
    )


@routes.get(_ONE + "/evidence")
async def download_evidence(request: web.Request) -> web.Response:
    """Hand out the raw evidence: bytes of a guest, that no browser is to render."""
    stored = await _stored(request)
    if stored.evidence is None:
        raise NotFoundError(f"attestation {stored.id} has no evidence")
    return _attachment(stored.evidence, f"attestation-{stored.id}.evidence")


@routes.get(_ONE + "/case")
async def download_case(request: web.Request) -> web.Response:
    """Hand out all that the verdict rests on, for `mcpctl attest verify`."""
    stored = await _stored(request)
    document = dump_stored(stored_of(stored))
    return _attachment(document, f"attestation-{stored.id}.json", "application/json")


async def _stored(request: web.Request) -> verdicts.Stored:
    principal = require(request, Role.OPERATOR)
    Query(request)
    attestation_id = AttestationId(path_id(request))
    async with request.app[FACE].database.reading() as conn:
        stored = await verdicts.get_stored(conn, principal.owner, attestation_id)
    if stored is None:
        raise NotFoundError(f"no attestation {attestation_id}")
    return stored


def _attachment(
    data: bytes, name: str, media_type: str = "application/octet-stream"
) -> web.Response:
    return web.Response(
        body=data,
        content_type=media_type,
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "Content-Security-Policy": "sandbox; default-src 'none'",
        },
    )


def _verdict_view(row: verdicts.Verdict) -> Mapping[str, Any]:
    return {
        "id": row.id,
        "runtime_vm_instance_id": row.instance_id,
        "instance_id": row.instance_name,
        "server_id": row.server_id,
        "accelerator_id": row.accelerator_id,
        "attestation_kind": row.kind,
        "verification_status": row.status,
        "code": row.code,
        "policy_id": row.policy_id,
        "policy_version": row.policy_version,
        "challenge_id": row.challenge_id,
        "freshness_expires_at": row.freshness_expires_at,
        "verification_notes": row.notes,
        "remediation_notes": row.remedies,
        "evidence_bytes": row.evidence_bytes,
        "provenance_ref": f"attestation:{row.kind}:{row.id}",
        "verified_at": row.verified_at,
        "created_at": row.created_at,
    }
