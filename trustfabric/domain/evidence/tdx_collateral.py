"""Whether Intel's collateral is sound, before a quote is held against it.

dcap-qvl judges both together and lets a quote pay for either: a damaged file of ours
must be no guest's failure. What is sound here may still be out of date.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import dcap_qvl
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from trustfabric.domain.evidence.certificate import (
    Certificate,
    parse_certificate,
    pem_bodies,
)
from trustfabric.domain.evidence.model import Code, Reject

MAX_COLLATERAL = 256 * 1024
_CHECK = "collateral"
_LONGEST_CHAIN = 4
_SCALAR = 32
_REMEMBERED = 32
_UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxCollateral:
    """What a file says, each part signed below Intel's root."""

    fmspc: str
    """The platforms that it is about, in lower case."""
    ends: datetime
    """When the first of its parts runs out."""


def read_collateral(raw: bytes) -> Any:
    """Return what dcap-qvl takes (QuoteCollateralV3). Reject(verifier-fault)."""
    if len(raw) > MAX_COLLATERAL:
        raise _fault(f"{len(raw)} bytes")
    try:
        return dcap_qvl.QuoteCollateralV3.from_json(raw.decode("utf-8"))
    except ValueError as error:
        raise _fault(str(error).splitlines()[0][:200]) from None


@lru_cache(maxsize=_REMEMBERED)
def sound_collateral(raw: bytes, root: bytes) -> TdxCollateral:
    """Verify every signature of a file, but no date. Reject(verifier-fault)."""
    parts = read_collateral(raw)
    try:
        return _sound(parts, parse_certificate(root, "root"))
    except Reject as reject:
        raise _fault(str(reject)) from None
    except InvalidSignature:
        raise _fault("a part is not signed by Intel") from None
    except _UNREADABLE as error:
        raise _fault(f"{type(error).__name__}: {error}"[:200]) from None


def _sound(parts: Any, root: Certificate) -> TdxCollateral:
    tcb_chain = _chain(parts.tcb_info_issuer_chain, "TCB info", root)
    qe_chain = _chain(parts.qe_identity_issuer_chain, "QE identity", root)
    pck_chain = _chain(parts.pck_crl_issuer_chain, "PCK CRL", root)
    tcb = _signed(parts.tcb_info, parts.tcb_info_signature, tcb_chain[0], "TDX")
    qe = _signed(parts.qe_identity, parts.qe_identity_signature, qe_chain[0], "TD_QE")
    return TdxCollateral(
        fmspc=str(tcb["fmspc"]).lower(),
        ends=min(
            datetime.fromisoformat(tcb["nextUpdate"]),
            datetime.fromisoformat(qe["nextUpdate"]),
            _next_update(parts.root_ca_crl, root),
            _next_update(parts.pck_crl, pck_chain[0]),
            *(each.not_after for each in (*tcb_chain, *qe_chain, *pck_chain)),
        ),
    )


def _chain(pem: str, name: str, root: Certificate) -> list[Certificate]:
    bodies = pem_bodies(pem.encode(), name)
    if len(bodies) > _LONGEST_CHAIN:
        raise Reject(Code.CHAIN_INVALID, name, f"a chain of {len(bodies)}")
    chain = [parse_certificate(body, name) for body in bodies]
    for certificate, issuer in zip(chain, (*chain[1:], root), strict=True):
        certificate.require_issued_by(issuer, name)
    return chain


def _signed(text: str, signature: bytes, issuer: Certificate, about: str) -> Any:
    key = issuer.key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(signature) != 2 * _SCALAR:
        raise InvalidSignature
    r, s = signature[:_SCALAR], signature[_SCALAR:]
    encoded = encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
    key.verify(encoded, text.encode(), ec.ECDSA(hashes.SHA256()))
    said = json.loads(text)
    if said["id"] != about:
        raise ValueError(f"of {said['id']}, where {about} is wanted")
    return said


def _next_update(data: bytes, issuer: Certificate) -> datetime:
    crl = x509.load_der_x509_crl(data)
    if not crl.is_signature_valid(issuer.key()) or crl.next_update_utc is None:
        raise InvalidSignature
    return crl.next_update_utc


def _fault(detail: str) -> Reject:
    return Reject(Code.VERIFIER_FAULT, _CHECK, detail)
