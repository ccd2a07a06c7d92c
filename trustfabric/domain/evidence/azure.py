"""Azure's composite: a hardware report that vouches for a virtual TPM's key.

The report's report_data is a digest of the runtime data, which names the key; the
TPM quote carries the nonce.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from hmac import compare_digest

from trustfabric.domain.evidence import snp, tpm2
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.documents import (
    as_object,
    base64_bytes,
    only_keys,
    read_object,
    text,
)
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import (
    _AUTHENTICATOR,
    Authenticated,
    Code,
    EvidenceKind,
    Reject,
)
from trustfabric.domain.evidence.tpm2_signature import bare_rsassa

ENDORSER = "azure"

_CHECK = "hcl"
_MAGIC = b"HCLA"
_HEADER = 32
_REPORT = 1184
_PREFIX = 20
_SNP = 2
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
_AK = "HCLAkPub"


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """Azure's wrapping of a hardware report and what it covers."""

    report: bytes
    hash: str
    runtime_data: bytes
    """JSON, to be hashed before anybody reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureEvidence:
    """Nothing is believed yet."""

    hcl: HclReport
    hardware: snp.SnpEvidence
    quote: tpm2.TpmQuote


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureClaims:
    """What the processor vouches for, and what the TPM that it vouches for says."""

    hardware: snp.SnpClaims
    tpm: tpm2.TpmClaims
    vm_unique_id: str | None
    secure_boot: bool | None


def parse_document(raw: bytes) -> AzureEvidence:
    """Read `{"kind", "hcl", "leaf", "intermediate"?, "attest", "signature", "pcrs"}`.

    The signature is the bare RSASSA number, as Azure's TPM gives it.
    """
    check = "document"
    members = read_object(raw, check)
    only_keys(
        members,
        check,
        frozenset({"kind", "hcl", "leaf", "attest", "signature", "pcrs"}),
        frozenset({"intermediate"}),
    )
    if text(members, "kind", check) != EvidenceKind.COMPOSITE_AZURE_VTPM:
        raise Reject(Code.MALFORMED, "kind", "not the kind that was asked for")
    quote = tpm2.parse(
        base64_bytes(members, "attest", check),
        bare_rsassa(base64_bytes(members, "signature", check)),
        tpm2.read_pcrs(members["pcrs"]),
    )
    return parse(
        base64_bytes(members, "hcl", check),
        base64_bytes(members, "leaf", check),
        quote,
        base64_bytes(members, "intermediate", check)
        if "intermediate" in members
        else None,
    )


def parse(
    hcl: bytes,
    leaf: bytes,
    quote: tpm2.TpmQuote,
    intermediate: bytes | None = None,
) -> AzureEvidence:
    wrapped = parse_hcl(hcl)
    return AzureEvidence(
        hcl=wrapped,
        hardware=snp.parse(wrapped.report, leaf, intermediate),
        quote=quote,
    )


def parse_hcl(raw: bytes) -> HclReport:
    cursor = Cursor(raw, _CHECK, "little")
    if cursor.take(_HEADER)[: len(_MAGIC)] != _MAGIC:
        raise cursor.malformed("not Azure's")
    report = cursor.take(_REPORT)
    size, _version, kind = cursor.u32(), cursor.u32(), cursor.u32()
    algorithm = _HASHES.get(cursor.u32())
    if kind != _SNP:
        raise Reject(Code.UNSUPPORTED, _CHECK, f"hardware report of type {kind}")
    if algorithm is None:
        raise Reject(Code.UNSUPPORTED, _CHECK, "unknown hash")
    length = cursor.u32()
    if size != length + _PREFIX:
        raise cursor.malformed("two sizes that differ")
    runtime_data = cursor.take(length)
    cursor.zeros(cursor.remaining, "the rest")
    return HclReport(report=report, hash=algorithm, runtime_data=runtime_data)


def authenticate(
    evidence: AzureEvidence, anchors: Anchors, now: datetime
) -> Authenticated[AzureClaims]:
    hardware = snp.authenticate(evidence.hardware, anchors, now)
    _require_covered(evidence.hcl, hardware.claims.report.report_data)
    runtime = read_object(evidence.hcl.runtime_data, "runtime-data")
    quoted = tpm2.authenticate(evidence.quote, (_attestation_key(runtime),))
    configuration = as_object(runtime.get("vm-configuration", {}), "runtime-data")
    return Authenticated(
        kind=EvidenceKind.COMPOSITE_AZURE_VTPM,
        claims=AzureClaims(
            hardware=hardware.claims,
            tpm=quoted.claims,
            vm_unique_id=_text(configuration.get("vmUniqueId")),
            secure_boot=_flag(configuration.get("secure-boot")),
        ),
        region_sha256=hashlib.sha256(
            evidence.hardware.report.signed + evidence.quote.attest
        ).hexdigest(),
        endorsements={**hardware.endorsements, **quoted.endorsements},
        endorsed_until=hardware.endorsed_until,
        token=_AUTHENTICATOR,
    )


def _require_covered(hcl: HclReport, report_data: bytes) -> None:
    digest = hashlib.new(hcl.hash, hcl.runtime_data).digest()
    if not compare_digest(digest.ljust(len(report_data), b"\0"), report_data):
        raise Reject(
            Code.ENDORSEMENT_MISMATCH,
            "runtime-data",
            "the hardware report is about other runtime data",
            expected=report_data.hex(),
            actual=digest.hex(),
        )


def _attestation_key(runtime: dict[str, object]) -> EnrolledKey:
    keys = runtime.get("keys")
    found = [
        key
        for key in (keys if isinstance(keys, list) else [])
        if isinstance(key, dict) and key.get("kid") == _AK
    ]
    if len(found) != 1:
        raise Reject(Code.MALFORMED, "runtime-data", f"no key {_AK}")
    return EnrolledKey.from_jwk(found[0], ENDORSER)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
