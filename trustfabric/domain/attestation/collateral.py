"""What makers publish about their platforms: which of it evidence needs, and its use.

One file a platform: `amd/<product>.crl` is the revocation list of AMD's root, DER or
PEM; `intel/<fmspc>.json` dcap-qvl's QuoteCollateralV3. A file that is damaged, or
about something else, is a fault of ours (verifier-fault), never the guest's.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from trustfabric.domain.attestation.provenance import canonical
from trustfabric.domain.evidence import azure, snp, tdx
from trustfabric.domain.evidence.anchors import AMD_PRODUCTS, Anchors, Collateral
from trustfabric.domain.evidence.model import Code, EvidenceKind, JsonValue, Reject
from trustfabric.domain.evidence.snp_chain import MAX_CRL, signed_crl
from trustfabric.domain.evidence.tdx_collateral import (
    MAX_COLLATERAL,
    sound_collateral,
)

NEEDED_BY = frozenset(
    {
        EvidenceKind.AMD_SEV_SNP,
        EvidenceKind.INTEL_TDX,
        EvidenceKind.COMPOSITE_AZURE_VTPM,
    }
)
_NAME = re.compile(
    rf"amd/(?P<product>{'|'.join(AMD_PRODUCTS)})\.crl"
    r"|intel/(?P<fmspc>[0-9a-f]{12})\.json"
)
_CHECK = "collateral"


@dataclass(frozen=True, slots=True)
class Stock:
    """What there is of one maker's."""

    ends: datetime | None
    """When the first file that can be used runs out; None: there is none."""
    unusable: int
    """Files that can't be."""


def document_of(collateral: Collateral) -> dict[str, JsonValue]:
    """Return what is kept of it with verdicts."""
    content = base64.b64encode(collateral.content).decode()
    return {"name": collateral.name, "content": content}


def digest_of(collateral: Collateral) -> bytes:
    """Return what it is kept by."""
    return hashlib.sha256(canonical(document_of(collateral))).digest()


def from_document(document: Mapping[str, Any]) -> Collateral:
    """Read what `document_of` wrote. LookupError, TypeError or ValueError."""
    content = base64.b64decode(document["content"], validate=True)
    return Collateral(name=str(document["name"]), content=content)


def most_bytes(name: str) -> int | None:
    """Return how large the file of this name may be; None: nothing reads it."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return MAX_CRL if match["product"] else MAX_COLLATERAL


def needed_by(kind: EvidenceKind, raw: bytes) -> str | None:
    """Name the file that evidence is judged with; None: none, or it can't be read.

    What the evidence says of its platform is not believed by this: collateral of
    another one vouches for nothing.
    """
    try:
        match kind:
            case EvidenceKind.AMD_SEV_SNP:
                return _name_for(snp.parse_document(raw))
            case EvidenceKind.INTEL_TDX:
                return _name_for(tdx.parse_document(raw))
            case EvidenceKind.COMPOSITE_AZURE_VTPM:
                return _name_for(azure.parse_document(raw).hardware)
            case _:
                return None
    except Reject:
        return None


def _name_for(evidence: snp.SnpEvidence | tdx.TdxQuote) -> str | None:
    if isinstance(evidence, tdx.TdxQuote):
        name = f"intel/{tdx.fmspc_of(evidence)}.json"
    else:
        name = f"amd/{evidence.signer.product}.crl"
    return name if _NAME.fullmatch(name) else None


def ends_of(collateral: Collateral, anchors: Anchors) -> datetime:
    """Return when it runs out. Reject(verifier-fault) where it can't be used."""
    match = _NAME.fullmatch(collateral.name)
    if match is None:
        raise _fault(collateral, "no collateral has this name")
    if match["fmspc"]:
        return _tdx_ends(collateral, anchors, match["fmspc"])
    roots = anchors.amd.get(match["product"])
    if roots is None:
        raise _fault(collateral, f"no root for {match['product']}")
    try:
        return signed_crl(collateral.content, roots.ark)[1]
    except Reject as reject:
        raise _fault(collateral, str(reject)) from None


def _tdx_ends(collateral: Collateral, anchors: Anchors, fmspc: str) -> datetime:
    if anchors.intel is None:
        raise _fault(collateral, "no root for Intel")
    try:
        told = sound_collateral(collateral.content, anchors.intel)
    except Reject as reject:
        raise _fault(collateral, reject.detail) from None
    if told.fmspc != fmspc:
        raise _fault(collateral, f"it is about FMSPC {told.fmspc}")
    return told.ends


def with_collateral(anchors: Anchors) -> Anchors:
    """Put collateral beside the root that signed it. Reject(verifier-fault)."""
    collateral = anchors.collateral
    if collateral is None:
        return anchors
    ends_of(collateral, anchors)
    if collateral.name.startswith("intel/"):
        return replace(anchors, intel_collateral=collateral.content)
    product = collateral.name.removeprefix("amd/").removesuffix(".crl")
    roots = replace(anchors.amd[product], crl=collateral.content)
    return replace(anchors, amd={**anchors.amd, product: roots})


def _fault(collateral: Collateral, detail: str) -> Reject:
    return Reject(Code.VERIFIER_FAULT, _CHECK, f"{collateral.name}: {detail}")
