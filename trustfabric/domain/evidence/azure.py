"""Azure's composite: a hardware report that vouches for a virtual TPM's key.

The report's report_data is a digest of the runtime data, which names the key; the
TPM quote carries the nonce.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from hmac import compare_digest

from trustfabric.domain.evidence import snp, tdx, tpm2
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
_TEES = {2: EvidenceKind.AMD_SEV_SNP, 4: EvidenceKind.INTEL_TDX}
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
_AK = "HCLAkPub"


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """Azure's wrapping of a hardware report and what it covers."""

    tee: EvidenceKind
    report: bytes
    """TDX: a report for this machine only; what others believe is a quote of it."""
    hash: str
    runtime_data: bytes
    """JSON, to be hashed before anybody reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureEvidence:
    """Nothing is believed yet."""

    hcl: HclReport
    hardware: snp.SnpEvidence | tdx.TdxQuote
    quote: tpm2.TpmQuote


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureClaims:
    """What the processor vouches for, and what the TPM that it vouches for says."""

    hardware: snp.SnpClaims | tdx.TdxClaims
    tpm: tpm2.TpmClaims
    vm_unique_id: str | None
    secure_boot: bool | None


def parse_document(raw: bytes) -> AzureEvidence:
    """Read `{"kind", "hcl", "leaf" or "td_quote", "attest", "signature", "pcrs"}`.

    `leaf` is the certificate of an SNP report's key, with an "intermediate" perhaps.
    The signature is the bare RSASSA number, as Azure's TPM gives it.
    """
    check = "document"
    members = read_object(raw, check)
    only_keys(
        members,
        check,
        frozenset({"kind", "hcl", "attest", "signature", "pcrs"}),
        frozenset({"leaf", "intermediate", "td_quote"}),
    )
    if text(members, "kind", check) != EvidenceKind.COMPOSITE_AZURE_VTPM:
        raise Reject(Code.MALFORMED, "kind", "not the kind that was asked for")
    quote = tpm2.parse(
        base64_bytes(members, "attest", check),
        bare_rsassa(base64_bytes(members, "signature", check)),
        tpm2.read_pcrs(members["pcrs"]),
    )
    hcl = base64_bytes(members, "hcl", check)
    if "td_quote" in members:
        return parse_with_tdx(hcl, base64_bytes(members, "td_quote", check), quote)
    return parse_with_snp(
        hcl,
        base64_bytes(members, "leaf", check),
        quote,
        base64_bytes(members, "intermediate", check)
        if "intermediate" in members
        else None,
    )


def parse_with_snp(
    hcl: bytes,
    leaf: bytes,
    quote: tpm2.TpmQuote,
    intermediate: bytes | None = None,
) -> AzureEvidence:
    wrapped = _parse_hcl_of(hcl, EvidenceKind.AMD_SEV_SNP)
    return AzureEvidence(
        hcl=wrapped,
        hardware=snp.parse(wrapped.report, leaf, intermediate),
        quote=quote,
    )


def parse_with_tdx(hcl: bytes, td_quote: bytes, quote: tpm2.TpmQuote) -> AzureEvidence:
    return AzureEvidence(
        hcl=_parse_hcl_of(hcl, EvidenceKind.INTEL_TDX),
        hardware=tdx.parse(td_quote),
        quote=quote,
    )


def _parse_hcl_of(raw: bytes, tee: EvidenceKind) -> HclReport:
    hcl = parse_hcl(raw)
    if hcl.tee is not tee:
        raise Reject(
            Code.MALFORMED, _CHECK, "another tee", expected=tee, actual=hcl.tee
        )
    return hcl


def parse_hcl(raw: bytes) -> HclReport:
    cursor = Cursor(raw, _CHECK, "little")
    if cursor.take(_HEADER)[: len(_MAGIC)] != _MAGIC:
        raise cursor.malformed("not Azure's")
    report = cursor.take(_REPORT)
    size, _version, kind = cursor.u32(), cursor.u32(), cursor.u32()
    tee = _TEES.get(kind)
    algorithm = _HASHES.get(cursor.u32())
    if tee is None:
        raise Reject(Code.UNSUPPORTED, _CHECK, f"hardware report of type {kind}")
    if algorithm is None:
        raise Reject(Code.UNSUPPORTED, _CHECK, "unknown hash")
    length = cursor.u32()
    if size != length + _PREFIX:
        raise cursor.malformed("two sizes that differ")
    runtime_data = cursor.take(length)
    cursor.zeros(cursor.remaining, "the rest")
    return HclReport(tee=tee, report=report, hash=algorithm, runtime_data=runtime_data)


def authenticate(
    evidence: AzureEvidence, anchors: Anchors, now: datetime
) -> Authenticated[AzureClaims]:
    hardware, report_data = _hardware(evidence.hardware, anchors, now)
    _require_covered(evidence.hcl, report_data)
    runtime = read_object(evidence.hcl.runtime_data, "runtime-data")
    quoted = tpm2.authenticate(evidence.quote, (_attestation_key(runtime),))
    configuration = as_object(runtime.get("vm-configuration", {}), "runtime-data")
    regions = f"{hardware.region_sha256} {quoted.region_sha256}"
    return Authenticated(
        kind=EvidenceKind.COMPOSITE_AZURE_VTPM,
        claims=AzureClaims(
            hardware=hardware.claims,
            tpm=quoted.claims,
            vm_unique_id=_text(configuration.get("vmUniqueId")),
            secure_boot=_flag(configuration.get("secure-boot")),
        ),
        region_sha256=hashlib.sha256(regions.encode()).hexdigest(),
        endorsements={**hardware.endorsements, **quoted.endorsements},
        endorsed_until=hardware.endorsed_until,
        advisories=hardware.advisories,
        token=_AUTHENTICATOR,
    )


def _hardware(
    evidence: snp.SnpEvidence | tdx.TdxQuote, anchors: Anchors, now: datetime
) -> tuple[Authenticated[snp.SnpClaims | tdx.TdxClaims], bytes]:
    """Authenticate it; return with it what it covers."""
    if isinstance(evidence, snp.SnpEvidence):
        reported = snp.authenticate(evidence, anchors, now)
        return reported, reported.claims.report.report_data
    quoted = tdx.authenticate(evidence, anchors, now)
    return quoted, quoted.claims.report_data


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
