"""The chain of an AMD report: the key that signed it, up to a root of ours."""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trustfabric.domain.evidence import der
from trustfabric.domain.evidence.anchors import AmdRoots
from trustfabric.domain.evidence.certificate import (
    Certificate,
    common_name,
    parse_certificate,
    require_pss_signature,
)
from trustfabric.domain.evidence.model import Code, Reject
from trustfabric.domain.evidence.snp_report import Tcb

_ARC = "1.3.6.1.4.1.3704.1."
_PRODUCT, _HARDWARE_ID, _PROVIDER = f"{_ARC}2", f"{_ARC}4", f"{_ARC}5"
_SPL = {"fmc": "3.9", "bl": "3.1", "tee": "3.2", "snp": "3.3", "ucode": "3.8"}
_HARDWARE_ID_SIZES = (8, 64)
_CHECK = "leaf"
MAX_CRL = 1024 * 1024
_REMEMBERED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerKey:
    """A VCEK or VLEK: what its certificate says beside the key."""

    certificate: Certificate
    signer: str
    product: str
    tcb: Tcb
    hardware_id: bytes
    """Empty for a VLEK."""
    key: ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A verified one."""

    leaf_sha256: str
    root_sha256: str
    ends: datetime
    crl_next: datetime | None
    """None: there was no revocation list."""


def parse_signer(data: bytes) -> SignerKey:
    certificate = parse_certificate(data, _CHECK)
    product = _product(certificate)
    provider, hardware = (
        _PROVIDER in certificate.extensions,
        _HARDWARE_ID in certificate.extensions,
    )
    if provider == hardware:
        raise Reject(Code.MALFORMED, _CHECK, "needs a chip's id or a provider's")
    key = certificate.key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.key_size != 384:  # noqa: PLR2004
        raise Reject(Code.MALFORMED, _CHECK, "its key is not on P-384")
    return SignerKey(
        certificate=certificate,
        signer="VLEK" if provider else "VCEK",
        product=product,
        tcb=_tcb(certificate, product),
        hardware_id=b"" if provider else _hardware_id(certificate),
        key=key,
    )


def _product(certificate: Certificate) -> str:
    name = der.whole(_extension(certificate, _PRODUCT), der.IA5_STRING, _CHECK)
    return name.decode("ascii", "replace").split("-")[0]


def _extension(certificate: Certificate, name: str) -> bytes:
    try:
        return certificate.extensions[name]
    except KeyError:
        raise Reject(Code.MALFORMED, _CHECK, f"extension {name} is missing") from None


def _tcb(certificate: Certificate, product: str) -> Tcb:
    parts = {}
    for part, arc in _SPL.items():
        if part == "fmc" and product != "Turin":
            parts[part] = 0
            continue
        parts[part] = der.unsigned(_extension(certificate, _ARC + arc), _CHECK)
    return Tcb(**parts)


def _hardware_id(certificate: Certificate) -> bytes:
    """Newer ones wrap it in an OCTET STRING, older ones don't."""
    raw = _extension(certificate, _HARDWARE_ID)
    if len(raw) not in _HARDWARE_ID_SIZES:
        raw = der.whole(raw, der.OCTET_STRING, _CHECK)
    if len(raw) not in _HARDWARE_ID_SIZES:
        raise Reject(Code.MALFORMED, _CHECK, f"a chip id of {len(raw)} bytes")
    return raw


def verify_chain(
    signer: SignerKey, offered: bytes | None, roots: AmdRoots, now: datetime
) -> Chain:
    """Verify names, signatures, dates and revocation up to our root.

    `offered` is an intermediate that came with the evidence: it replaces ours and
    is believed no more than the leaf is.
    """
    root = parse_certificate(roots.ark, "root")
    intermediates = [
        parse_certificate(data, "intermediate")
        for data in (roots.intermediates if offered is None else (offered,))
    ]
    leaf = signer.certificate
    name = "SEV-VLEK-" if signer.signer == "VLEK" else "SEV-"
    issuers = [each for each in intermediates if each.subject == leaf.issuer]
    if not issuers or leaf.issuer_cn != name + signer.product:
        raise Reject(
            Code.CHAIN_INVALID,
            "chain",
            "no intermediate of that name",
            expected=name + signer.product,
            actual=leaf.issuer_cn,
        )
    intermediate = issuers[0]
    root.require_issued_by(root, "root")
    intermediate.require_issued_by(root, "intermediate")
    leaf.require_issued_by(intermediate, _CHECK)
    for certificate, check in (
        (root, "root"),
        (intermediate, "intermediate"),
        (leaf, _CHECK),
    ):
        certificate.require_in_date(now, check)
    crl_next = None
    if roots.crl is not None:
        crl_next = _require_unrevoked((intermediate, leaf), roots.crl, root, now)
    dates = [leaf.not_after, intermediate.not_after, root.not_after]
    return Chain(
        leaf_sha256=leaf.sha256,
        root_sha256=root.sha256,
        ends=min(dates if crl_next is None else [*dates, crl_next]),
        crl_next=crl_next,
    )


def _require_unrevoked(
    certificates: tuple[Certificate, ...],
    data: bytes,
    root: Certificate,
    now: datetime,
) -> datetime:
    """Return when the list runs out. It can't name chips: their serial is 0."""
    crl, next_update = signed_crl(data, root.der)
    if not crl.last_update_utc <= now <= next_update:
        raise Reject(
            Code.EXPIRED,
            "crl",
            "out of date",
            expected=f"{crl.last_update_utc:%F} to {next_update:%F}",
            actual=f"{now:%F}",
        )
    for certificate in certificates:
        if certificate.serial <= 0:
            continue
        if crl.get_revoked_certificate_by_serial_number(certificate.serial):
            raise Reject(Code.REVOKED, "crl", f"{certificate.subject_cn} is revoked")
    return next_update


@lru_cache(maxsize=_REMEMBERED)
def signed_crl(
    data: bytes, ark: bytes
) -> tuple[x509.CertificateRevocationList, datetime]:
    """Return a list that the root signed, and when it runs out."""
    root, crl = parse_certificate(ark, "root"), _crl(data)
    try:
        tbs, ends = crl.tbs_certlist_bytes, crl.next_update_utc
    except ValueError:  # its parts are read when they are asked for
        raise Reject(Code.MALFORMED, "crl", "no revocation list") from None
    if _issuer_cn(tbs) != root.subject_cn:
        raise Reject(Code.CHAIN_INVALID, "crl", "of another issuer")
    require_pss_signature(root, crl.signature, tbs, "crl")
    if ends is None:
        raise Reject(Code.MALFORMED, "crl", "without an end")
    return crl, ends


def _crl(data: bytes) -> x509.CertificateRevocationList:
    if len(data) > MAX_CRL:
        raise Reject(Code.MALFORMED, "crl", f"{len(data)} bytes")
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_crl(data)
        return x509.load_der_x509_crl(data)
    except (ValueError, x509.InvalidVersion):
        raise Reject(Code.MALFORMED, "crl", "no revocation list") from None


def _issuer_cn(tbs: bytes) -> str:
    """Read the name that follows the algorithm; a version may come before both."""
    parts = der.elements(der.whole(tbs, der.SEQUENCE, "crl"), "crl")
    sequences = [part.encoded for part in parts if part.tag == der.SEQUENCE]
    if len(sequences) < 2:  # noqa: PLR2004 - algorithm, issuer
        raise Reject(Code.MALFORMED, "crl", "without an issuer")
    return common_name(sequences[1])
