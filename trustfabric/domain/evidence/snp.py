"""SEV-SNP evidence: a report, the certificate of its key, and whether they hold."""

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

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
from trustfabric.domain.evidence.snp_chain import SignerKey, parse_signer, verify_chain
from trustfabric.domain.evidence.snp_report import SnpReport, Tcb, parse_report


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpEvidence:
    """A report and the certificate that came with it; nothing is believed yet."""

    report: SnpReport
    signer: SignerKey
    intermediate: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpClaims:
    """What AMD's processor vouches for."""

    report: SnpReport
    product: str
    reported_tcb: Tcb
    committed_tcb: Tcb
    current_tcb: Tcb
    launch_tcb: Tcb
    revocation_checked: bool

    @property
    def debug(self) -> bool:
        return bool(self.report.policy >> 19 & 1)

    @property
    def migratable(self) -> bool:
        return bool(self.report.policy >> 18 & 1)


def parse_document(raw: bytes) -> SnpEvidence:
    """Read `{"kind": "amd-sev-snp", "report", "leaf", "intermediate"?}`."""
    check = "document"
    members = read_object(raw, check)
    only_keys(
        members,
        check,
        frozenset({"kind", "report", "leaf"}),
        frozenset({"intermediate"}),
    )
    if text(members, "kind", check) != EvidenceKind.AMD_SEV_SNP:
        raise Reject(Code.MALFORMED, "kind", "not the kind that was asked for")
    return parse(
        base64_bytes(members, "report", check),
        base64_bytes(members, "leaf", check),
        base64_bytes(members, "intermediate", check)
        if "intermediate" in members
        else None,
    )


def write_document(
    report: bytes, leaf: bytes, intermediate: bytes | None = None
) -> bytes:
    """Write what `parse_document` reads."""
    parts = {"report": report, "leaf": leaf}
    if intermediate is not None:
        parts["intermediate"] = intermediate
    encoded = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    return json.dumps(
        {"kind": EvidenceKind.AMD_SEV_SNP, **encoded}, separators=(",", ":")
    ).encode()


def parse(report: bytes, leaf: bytes, intermediate: bytes | None = None) -> SnpEvidence:
    return SnpEvidence(
        report=parse_report(report),
        signer=parse_signer(leaf),
        intermediate=intermediate,
    )


def authenticate(
    evidence: SnpEvidence, anchors: Anchors, now: datetime
) -> Authenticated[SnpClaims]:
    report, signer = evidence.report, evidence.signer
    roots = anchors.amd.get(signer.product)
    if roots is None:
        raise Reject(Code.UNSUPPORTED, "product", f"no root for {signer.product!r}")
    chain = verify_chain(signer, evidence.intermediate, roots, now)
    _require_signed(report, signer)
    _require_endorsed(report, signer)

    def tcb(raw: bytes) -> Tcb:
        return Tcb.of(raw, signer.product)

    return Authenticated(
        kind=EvidenceKind.AMD_SEV_SNP,
        claims=SnpClaims(
            report=report,
            product=signer.product,
            reported_tcb=tcb(report.reported_tcb),
            committed_tcb=tcb(report.committed_tcb),
            current_tcb=tcb(report.current_tcb),
            launch_tcb=tcb(report.launch_tcb),
            revocation_checked=chain.crl_next is not None,
        ),
        region_sha256=hashlib.sha256(report.signed).hexdigest(),
        endorsements={
            "leaf_sha256": chain.leaf_sha256,
            "root_sha256": chain.root_sha256,
            "crl_next_update": chain.crl_next.isoformat() if chain.crl_next else None,
        },
        endorsed_until=chain.ends,
        token=_AUTHENTICATOR,
    )


def _require_signed(report: SnpReport, signer: SignerKey) -> None:
    try:
        signature = encode_dss_signature(report.r, report.s)
        signer.key.verify(signature, report.signed, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        raise Reject(
            Code.SIGNATURE_INVALID, "signature", "not signed by the leaf's key"
        ) from None


def _require_endorsed(report: SnpReport, signer: SignerKey) -> None:
    """Refuse a certificate about another chip or another security version."""
    pairs = (
        ("signer", signer.signer, report.signer),
        ("product", signer.product, report.product or signer.product),
        ("tcb", signer.tcb, Tcb.of(report.reported_tcb, signer.product)),
    )
    for check, endorsed, actual in pairs:
        if endorsed != actual:
            raise _mismatch(check, str(endorsed), str(actual))
    if signer.signer == "VCEK" and not report.chip_key_masked:
        chip = signer.hardware_id.ljust(len(report.chip_id), b"\0")
        if chip != report.chip_id:
            raise _mismatch("chip", chip.hex(), report.chip_id.hex(), identity=True)


def _mismatch(
    check: str, expected: str, actual: str, *, identity: bool = False
) -> Reject:
    return Reject(
        Code.ENDORSEMENT_MISMATCH,
        check,
        "the certificate is about another one",
        expected=expected,
        actual=actual,
        identity=identity,
    )
