"""Guests' agents over HTTP: challenges for those that push, their tokens and keys."""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Literal

import structlog
from aiohttp import web
from pydantic import Field

from trustfabric.actors.attestation import Answer, Attest, InHand, Stray
from trustfabric.db import agents, attestations, vms
from trustfabric.domain.attestation.binding import NONCE_BYTES, expected_of
from trustfabric.domain.attestation.model import Challenge
from trustfabric.domain.evidence.keys import SOFTWARE, EnrolledKey
from trustfabric.domain.evidence.model import EvidenceKind, Reject
from trustfabric.domain.ids import InstanceId
from trustfabric.errors import (
    AnswerRefusedError,
    BusyError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    LateAnswerError,
    NotFoundError,
)
from trustfabric.http.auth import PRINCIPAL, require
from trustfabric.http.face import ASK_S, FACE, Face
from trustfabric.http.parse import Body, Query, path_id, read_body
from trustfabric.http.reply import page, reply
from trustfabric.http.tokens import AgentScope, Principal, Role

log = structlog.get_logger(__name__)

routes = web.RouteTableDef()

CHALLENGES: Final = "/api/attestation/challenges"
_TOKENS = "/api/attestation/tokens"

LONGEST_WAIT_S = 30
TELLINGS = 16
"""Times that one challenge is told; each time with another nonce."""

_SECRET_BYTES = 32
_DAY_S = 86_400
_YEAR_S = 365 * _DAY_S
_EVIDENCE = 64 * 1024
_MOST_KEYS = 16
MOST_TOKENS = 16
"""Good ones of an instance at the same time: enough to exchange them one by one."""
_RETRY_S = 5
"""What an agent is told to wait for when it was refused."""


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


# --- challenges ---------------------------------------------------------------------


class Pushed(Body):
    nonce: str = Field(pattern=r"^[0-9a-fA-F]{64}$", repr=False)
    evidence: str = Field(min_length=1, max_length=4 * (_EVIDENCE // 3 + 1), repr=False)
    """The evidence document, in base64."""


@routes.get(CHALLENGES)
async def fetch_challenges(request: web.Request) -> web.Response:
    """Tell an agent its open challenges, after it waited for one as long as it likes.

    One for the VM itself, and one for each of its accelerators that gives evidence.
    """
    scope = _agent(request)
    query = Query(request, "wait")
    wait_s = query.integer("wait", maximum=LONGEST_WAIT_S) or 0
    face = request.app[FACE]
    asked = await _open_challenges(face, scope)
    if not asked and wait_s > 0:
        with face.bells.hung(scope.instance_id) as bell:
            face.streams.add(bell)
            try:
                asked = await _open_challenges(face, scope)
                if not asked:
                    await bell.wait(wait_s)
                    asked = await _open_challenges(face, scope)
            finally:
                face.streams.discard(bell)
    told = [view for each in asked if (view := await _tell(face, each)) is not None]
    if asked and not told:
        raise BusyError("the challenge was fetched too often: wait for the next one")
    return reply(told)


@routes.post(CHALLENGES)
async def answer_challenge(request: web.Request) -> web.Response:
    """Take an answer in hand. What comes of it is the operator's to know."""
    scope = _agent(request)
    body = await read_body(request, Pushed)
    try:
        evidence = base64.b64decode(body.evidence, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("evidence: not base64") from None
    face, nonce = request.app[FACE], bytes.fromhex(body.nonce)
    async with face.database.reading() as conn:
        asked = await agents.find_told(conn, hashlib.sha256(nonce).digest())
    await _sort(face, scope, asked)
    assert asked is not None  # sorted out otherwise
    await face.attestation.ask(Answer(asked, nonce, evidence), within_s=ASK_S)
    return reply({"challenge_id": asked.issued.id, "received": True}, status=202)


def _agent(request: web.Request) -> AgentScope:
    scope = request[PRINCIPAL].agent
    if scope is None:
        raise ForbiddenError("challenges are told to agents only: issue a token")
    return scope


async def _open_challenges(face: Face, scope: AgentScope) -> list[agents.Asked]:
    """Return the challenges that are open; where evidence is due, have one issued.

    One whose answer is being judged is open still, but answered: told once more, an
    honest agent would answer it a second time.
    """
    in_hand = InHand(scope.instance_id)
    if await face.attestation.ask(in_hand, within_s=ASK_S):
        return []
    now = face.now()
    async with face.database.reading() as conn:
        asked = await agents.list_open(conn, scope.instance_id, now)
        itself = any(one.accelerator_id is None for one in asked)
        due = not itself and await agents.wants_evidence(conn, scope.instance_id, now)
    if due:
        face.attestation.tell(Attest(scope.instance_id, "manual"))
    return asked


async def _tell(face: Face, asked: agents.Asked) -> Mapping[str, Any] | None:
    """Return a challenge with a nonce of its own; None: it was told often enough."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    async with face.database.writing() as conn:
        told = await agents.tell(
            conn,
            asked.issued.id,
            hashlib.sha256(nonce).digest(),
            face.now(),
            most=TELLINGS,
        )
    if not told:
        return None
    challenge = Challenge(
        kind=EvidenceKind(asked.kind),
        instance_id=asked.instance_name,
        boot_id=str(asked.boot_id),
        nonce=nonce,
        issued_at=asked.issued_at,
        expires_at=asked.expires_at,
    )
    return {
        "challenge_id": asked.issued.id,
        "kind": asked.kind,
        "accelerator_id": asked.accelerator_id,
        "vm_instance_id": asked.instance_id,
        "instance_id": asked.instance_name,
        "boot_id": asked.boot_id,
        "nonce": nonce.hex(),
        "extra_data": expected_of(challenge).hex(),
        "issued_at": asked.issued_at,
        "expires_at": asked.expires_at,
    }


async def _sort(face: Face, scope: AgentScope, asked: agents.Asked | None) -> None:
    """Let an answer to an open challenge pass; refuse and record any other."""
    foreign = asked is None or asked.instance_id != scope.instance_id
    if foreign or asked is None:
        await _stray(face, scope, None, "answers a challenge that it was never told")
        raise AnswerRefusedError("refused", retry_after_seconds=_RETRY_S)
    over = not asked.same_boot or asked.expires_at <= face.now()
    given_up = asked.used and asked.outcome == "unreachable"
    if given_up or (over and not asked.used):
        await _stray(face, scope, asked, "the answer came too late")
        raise LateAnswerError("too late: fetch the new challenge")
    if asked.used:
        await _stray(face, scope, None, "answers a challenge a second time")
        raise AnswerRefusedError("refused", retry_after_seconds=_RETRY_S)


async def _stray(
    face: Face, scope: AgentScope, late: agents.Asked | None, why: str
) -> None:
    await face.attestation.ask(Stray(scope.instance_id, late, why), within_s=ASK_S)


# --- tokens and keys ----------------------------------------------------------------


class NewToken(Body):
    runtime_vm_instance_id: int = Field(ge=1, le=2**62)
    ttl_seconds: int = Field(30 * _DAY_S, ge=60, le=_YEAR_S)
    boot: Literal["current", "any"] = "current"
    """Whether it ends with the boot that the instance is in now."""


@routes.post(_TOKENS)
async def issue_token(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    body = await read_body(request, NewToken)
    face = request.app[FACE]
    instance = await _own_instance(face, principal, body.runtime_vm_instance_id)
    if instance.attestation.get("source", "agent") != "agent":
        raise InvalidError(
            "runtime_vm_instance_id: its evidence comes from its host, not an agent"
        )
    if body.boot == "current" and instance.boot_id is None:
        raise ConflictError("the instance has not booted yet: start it first")
    secret, now = secrets.token_urlsafe(_SECRET_BYTES), face.now()
    new = agents.NewToken(
        instance_id=instance.id,
        boot_id=instance.boot_id if body.boot == "current" else None,
        secret_sha256=digest_of(secret),
        issued_by=principal.actor,
        issued_at=now,
        expires_at=now + timedelta(seconds=body.ttl_seconds),
    )
    async with face.database.writing() as conn:
        row = await agents.add_token(conn, new, most=MOST_TOKENS)
    if row is None:
        raise ConflictError(
            f"the instance has {MOST_TOKENS} tokens that are good: revoke one first"
        )
    token = face.tokens.issue(
        {
            "sub": str(instance.owner_id),
            "role": "agent",
            "exp": new.expires_at,
            "instance": instance.id,
            "jti": secret,
        }
    )
    face.attestation.tell(Attest(instance.id, "manual"))
    return reply(
        {**_token_view(row), "token": token},
        status=201,
        location=f"{_TOKENS}/{row.id}",
    )


@routes.get(_TOKENS)
async def list_tokens(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    query = Query(request, "runtime_vm_instance_id", "limit", "cursor")
    limit = query.limit()
    instance = query.integer("runtime_vm_instance_id", minimum=1)
    async with request.app[FACE].database.reading() as conn:
        rows = await agents.list_tokens(
            conn,
            principal.owner,
            None if instance is None else InstanceId(instance),
            after=query.cursor() or 0,
            limit=limit,
        )
    views = [_token_view(row) for row in rows]
    last = rows[-1].id if rows else 0
    return page(request, views, count=len(rows), limit=limit, last=last)


@routes.delete(_TOKENS + r"/{id:\d+}")
async def revoke_token(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    Query(request)
    face, token_id = request.app[FACE], path_id(request)
    async with face.database.writing() as conn:
        done = await agents.revoke_token(
            conn, principal.owner, token_id, principal.actor, face.now()
        )
    if not done:
        raise NotFoundError(f"no agent's token {token_id}")
    return web.Response(status=204)


class NewKey(Body):
    runtime_vm_instance_id: int = Field(ge=1, le=2**62)
    tpmt_public: str = Field(min_length=1, max_length=2048)
    """As `trustfabric-agent enroll` prints it: base64."""
    endorser: str = Field("swtpm", pattern=r"^[a-z0-9][a-z0-9:._-]{0,127}$")
    """Who vouches that the key lives in that guest's TPM."""


@routes.post("/api/attestation/keys")
async def enroll_key(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    body = await read_body(request, NewKey)
    if body.endorser not in SOFTWARE and principal.role is not Role.ADMIN:
        raise ForbiddenError("endorser: only role admin vouches for hardware")
    face = request.app[FACE]
    instance = await _own_instance(face, principal, body.runtime_vm_instance_id)
    try:
        public = base64.b64decode(body.tpmt_public, validate=True)
        key = EnrolledKey.from_tpmt(public, body.endorser)
    except (binascii.Error, ValueError):
        raise InvalidError("tpmt_public: not base64") from None
    except Reject as reject:
        raise InvalidError(f"tpmt_public: {reject}") from None
    async with face.database.writing() as conn:
        _check_new(key, await attestations.lock_keys(conn, instance.id), principal)
        await attestations.add_key(conn, instance.id, key)
        await vms.log_event(conn, instance.id, "key-enrolled")
    log.info("attestation.key-enrolled", instance_id=instance.id, by=principal.actor)
    face.attestation.tell(Attest(instance.id, "manual"))
    return reply(
        {
            "runtime_vm_instance_id": instance.id,
            "endorser": key.endorser,
            "key_id": key.key_id,
        },
        status=201,
    )


def _check_new(
    key: EnrolledKey, known: Sequence[EnrolledKey], principal: Principal
) -> None:
    """Refuse to exchange the key that an instance is known by (security case S21)."""
    if key in known:
        return
    if known and principal.role is not Role.ADMIN:
        raise ConflictError("the instance has a key: only role admin adds another")
    if len(known) >= _MOST_KEYS:
        raise ConflictError(f"the instance has {_MOST_KEYS} keys already")


async def _own_instance(
    face: Face, principal: Principal, instance_id: int
) -> vms.Instance:
    """Return a living instance of the caller's. NotFoundError."""
    async with face.database.reading() as conn:
        found = await vms.get_instance(conn, principal.owner, InstanceId(instance_id))
    if found is None or found.terminated_at is not None:
        raise NotFoundError(f"no instance {instance_id}")
    return found


def _token_view(row: agents.AgentToken) -> Mapping[str, Any]:
    return {
        "id": row.id,
        "runtime_vm_instance_id": row.instance_id,
        "boot_id": row.boot_id,
        "issued_by": row.issued_by,
        "issued_at": row.issued_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
    }
