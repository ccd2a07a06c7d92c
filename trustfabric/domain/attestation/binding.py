"""What a challenge makes evidence carry: more than a nonce, so that none is relayed."""

import hashlib

from trustfabric.domain.attestation.model import Challenge, EvidenceKind

NONCE_BYTES = 32
_LABEL = b"vmrt-attest-v1"


def binding(
    kind: EvidenceKind,
    instance_id: str,
    boot_id: str,
    nonce: bytes,
    channel_key: bytes = b"",
) -> bytes:
    """Return 64 bytes: the report_data of a report made for exactly this challenge.

    The texts are simply joined: no two challenges share a nonce, so no two
    challenges share a binding, whatever the texts are.
    """
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    return hashlib.sha512(
        _LABEL
        + kind.encode()
        + instance_id.encode()
        + boot_id.encode()
        + nonce
        + hashlib.sha256(channel_key).digest()
    ).digest()


def expected_of(challenge: Challenge) -> bytes:
    """Return what the evidence must carry: report_data, or a TPM's extraData.

    NVIDIA's protocol and EAR have room for 32 bytes only: they take the digest too.
    """
    whole = binding(
        challenge.kind,
        challenge.instance_id,
        challenge.boot_id,
        challenge.nonce,
        challenge.channel_key,
    )
    if challenge.kind in (EvidenceKind.AMD_SEV_SNP, EvidenceKind.INTEL_TDX):
        return whole
    return extra_data(whole)


def extra_data(whole: bytes) -> bytes:
    """Return 32 bytes: a binding as a TPM quote carries it."""
    return hashlib.sha256(whole).digest()
