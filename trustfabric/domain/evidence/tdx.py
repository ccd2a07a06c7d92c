"""Intel TDX quotes: the mathematics and Intel's rules are dcap-qvl's, offline."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import dcap_qvl

from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.documents import (
    base64_bytes,
    only_keys,
    read_object,
    text,
)
from trustfabric.domain.evidence.model import (
    _AUTHENTICATOR,
    Authenticated,
    Code,
    EvidenceKind,
    Reject,
)
from trustfabric.domain.evidence.tdx_collateral import read_collateral

UP_TO_DATE = "UpToDate"
_MAX_QUOTE = 64 * 1024
_HEADER = 48
_TD10_BODY = 584
_WITH_BODY_SIZE = 5

Answer = TypeVar("Answer")

_CAUSES: Final = (
    (Code.DEBUG_ENABLED, ("Debug mode is enabled",)),
    (
        Code.POLICY_VIOLATION,
        (
            "TD profiling is enabled",
            "SERVTD_EXT is enabled",
            "SEPT_VE_DISABLE is not enabled",
            "TD migration is enabled",
            "Invalid MR service TD",
            "Reserved bits in TD attributes",
        ),
    ),
    (Code.REVOKED, ("TCB status is invalid: Revoked", "CertRevoked")),
    (Code.TCB_OUT_OF_DATE, ("No matching TCB level", "TDX module TCB level")),
    (
        Code.EXPIRED,
        (
            "expired",
            "Expired",
            "in the future",
            "NotValidYet",
            "not valid yet",
            "UnknownRevocationStatus",
        ),
    ),
    (
        Code.ENDORSEMENT_MISMATCH,
        (
            "Fmspc mismatch",
            "non-TDX TCB info",
            "QE report hash mismatch",
            "QE MRSIGNER mismatch",
            "QE ISVPRODID mismatch",
            "QE MISCSELECT mismatch",
            "QE ATTRIBUTES mismatch",
            "TDX module MRSIGNER",
            "TDX module SEAMATTRIBUTES",
            "TDX module identity",
        ),
    ),
    (
        Code.CHAIN_INVALID,
        (
            "certificate chain",
            "Certificate chain is too short",
            "root ca",
            "UnknownIssuer",
            "UnsupportedSignatureAlgorithm",
            "InvalidSignatureForPublicKey",
            "in quote_collateral",
        ),
    ),
    (
        Code.UNSUPPORTED,
        (
            "Unsupported DCAP attestation key type",
            "Unsupported quote version",
            "Unsupported body type",
            "Unknown QE vendor",
            "Invalid TEE type",
        ),
    ),
    (Code.MALFORMED, ("Failed to decode", "Not enough data", "Invalid QE auth data")),
)
"""What dcap-qvl's sentences mean, most telling first; else: signature-invalid."""


@dataclass(frozen=True, slots=True)
class TdxQuote:
    """A quote that can be parsed; nothing is believed yet."""

    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxClaims:
    """What Intel's processor vouches for, and what Intel says about the processor."""

    report_data: bytes
    mrtd: str
    """The launch measurement; MRSEAM is the Intel module's."""
    rtmrs: tuple[str, ...]
    mrseam: str
    td_attributes: str
    tcb_status: str
    advisories: tuple[str, ...]
    evaluation: int
    fmspc: str
    quote_version: int


def parse_document(raw: bytes) -> TdxQuote:
    """Read `{"kind": "intel-tdx", "quote"}`; collateral is ours."""
    check = "document"
    members = read_object(raw, check)
    only_keys(members, check, frozenset({"kind", "quote"}))
    if text(members, "kind", check) != EvidenceKind.INTEL_TDX:
        raise Reject(Code.MALFORMED, "kind", "not the kind that was asked for")
    return parse(base64_bytes(members, "quote", check))


def write_document(quote: bytes) -> bytes:
    """Write what `parse_document` reads."""
    document = {
        "kind": EvidenceKind.INTEL_TDX,
        "quote": base64.b64encode(quote).decode(),
    }
    return json.dumps(document, separators=(",", ":")).encode()


def parse(raw: bytes) -> TdxQuote:
    if not _HEADER < len(raw) <= _MAX_QUOTE:
        raise Reject(Code.MALFORMED, "quote", f"{len(raw)} bytes")
    try:
        quote = _guarded(lambda: dcap_qvl.parse_quote(raw))
    except ValueError as error:
        raise Reject(Code.MALFORMED, "quote", _sentence(error)) from None
    if not quote.is_tdx():
        raise Reject(Code.UNSUPPORTED, "quote", "not of a trust domain")
    return TdxQuote(raw)


def fmspc_of(quote: TdxQuote) -> str | None:
    """Return the platform that a quote says it is of, in lower case; None: none."""
    try:
        named = _guarded(lambda: dcap_qvl.parse_quote(quote.raw).fmspc())
        return bytes.fromhex(named).hex()
    except (Reject, ValueError, TypeError):
        return None


def authenticate(
    quote: TdxQuote, anchors: Anchors, now: datetime
) -> Authenticated[TdxClaims]:
    if anchors.intel is None:
        raise Reject(Code.VERIFIER_FAULT, "root", "no root for Intel")
    if anchors.intel_collateral is None:
        raise Reject(
            Code.VERIFIER_FAULT,
            "collateral",
            "none",
            expected=f"collateral for FMSPC {fmspc_of(quote) or 'unknown'}",
        )
    collateral = read_collateral(anchors.intel_collateral)
    seconds = int(now.timestamp())
    try:
        document = json.loads(
            _guarded(lambda: _verified(quote, collateral, anchors.intel, seconds))
        )
    except ValueError as error:
        raise _classified(quote, collateral, anchors.intel, seconds, error) from None
    claims = _claims(document)
    return Authenticated(
        kind=EvidenceKind.INTEL_TDX,
        claims=claims,
        region_sha256=hashlib.sha256(_signed_region(quote.raw)).hexdigest(),
        endorsements={
            "root_sha256": hashlib.sha256(anchors.intel).hexdigest(),
            "tcb_evaluation_number": claims.evaluation,
            "pck_crl_number": document["platform"]["pck_crl_num"],
        },
        endorsed_until=_ends(document),
        advisories=(
            ()
            if claims.tcb_status == UP_TO_DATE
            else (claims.tcb_status, *claims.advisories)
        ),
        token=_AUTHENTICATOR,
    )


def _verified(
    quote: TdxQuote, collateral: Any, root: bytes | None, seconds: int
) -> str:
    policy = dcap_qvl.QuotePolicy.claims_only(seconds)
    verifier = dcap_qvl.QuoteVerifier(root)
    claims = verifier.verify_with_policy(quote.raw, collateral, seconds, policy)
    return str(claims.to_json())


def _classified(
    quote: TdxQuote, collateral: Any, root: bytes, seconds: int, error: ValueError
) -> Reject:
    """Ask again in the way that tells the cause: the first one hides it."""
    told = str(error)
    try:
        _guarded(
            lambda: dcap_qvl.verify_with_root_ca(quote.raw, collateral, root, seconds)
        )
    except ValueError as again:
        told = f"{told} {again}"
    for code, sentences in _CAUSES:
        if any(sentence in told for sentence in sentences):
            return Reject(code, "quote", _sentence(error))
    return Reject(Code.SIGNATURE_INVALID, "quote", _sentence(error))


def _claims(document: Mapping[str, Any]) -> TdxClaims:
    body = next(iter(document["report"].values()))
    while "base" in body:  # a report of 1.5 wraps one of 1.0
        body = body["base"]
    if "mr_td" not in body:
        raise Reject(Code.UNSUPPORTED, "quote", "a report of another shape")
    return TdxClaims(
        report_data=bytes.fromhex(body["report_data"]),
        mrtd=body["mr_td"],
        rtmrs=tuple(body.get(f"rt_mr{index}", "") for index in range(4)),
        mrseam=body["mr_seam"],
        td_attributes=body["td_attributes"],
        tcb_status=document["tcb"]["status"],
        advisories=tuple(document["tcb"]["advisory_ids"]),
        evaluation=document["tcb"]["eval_data_number"],
        fmspc=bytes(document["platform"]["pck"]["fmspc"]).hex(),
        quote_version=document["header"]["version"],
    )


def _ends(document: Mapping[str, Any]) -> datetime:
    soonest = min(
        document["earliest_expiration_date"],
        document["qe_iden_earliest_expiration_date"],
    )
    return datetime.fromtimestamp(soonest, UTC)


def _signed_region(raw: bytes) -> bytes:
    """Header and report; version 5 puts the report's type and size between them."""
    if int.from_bytes(raw[:2], "little") < _WITH_BODY_SIZE:
        return raw[: _HEADER + _TD10_BODY]
    size = int.from_bytes(raw[_HEADER + 2 : _HEADER + 6], "little")
    return raw[: _HEADER + 6 + size]


def _guarded(call: Callable[[], Answer]) -> Answer:
    """Call into the library; a panic there is our fault, not our end."""
    try:
        return call()
    except ValueError:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Reject(Code.VERIFIER_FAULT, "dcap-qvl", "panicked") from None


def _sentence(error: ValueError) -> str:
    return str(error).splitlines()[0][:200]
