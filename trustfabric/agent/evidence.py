"""What a TPM shows on request: the evidence document of a quote."""

import hashlib
from collections.abc import Sequence

from trustfabric.agent.tpm import AK_ECC, Quote, Tpm
from trustfabric.agent.transport import TpmUnreachableError
from trustfabric.domain.evidence.tpm2 import PcrValues, parse, write_document
from trustfabric.domain.evidence.tpm2_signature import parse_signature

_ATTEMPTS = 3


def tpm_evidence(
    tpm: Tpm,
    extra_data: bytes,
    pcrs: Sequence[int],
    *,
    bank: str = "sha256",
    template: bytes = AK_ECC,
) -> bytes:
    """Quote the registers and read them; again if one was extended in between."""
    with tpm.attestation_key(template) as key:
        for _ in range(_ATTEMPTS):
            made = tpm.quote(key, extra_data, {bank: pcrs})
            values = {bank: tpm.pcr_read(bank, pcrs)}
            if _belong_together(made, values):
                return write_document(made.attest, made.signature, values)
    raise TpmUnreachableError("its registers change faster than they can be read")


def _belong_together(made: Quote, values: PcrValues) -> bool:
    signature = parse_signature(made.signature)
    quote = parse(made.attest, signature, values)
    digest = hashlib.new(signature.hash, b"".join(quote.values)).digest()
    return digest == quote.pcr_digest
