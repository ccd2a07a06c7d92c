"""Every single bit of a report, a quote and a signature counts."""

from collections.abc import Iterator

import pytest

from tests.domain.evidence.snp_platform import NOW
from tests.domain.test_attestation_vectors import CASES, read
from trustfabric.domain.evidence import snp, tpm2
from trustfabric.domain.evidence.documents import read_json
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import Code, Reject
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.domain.evidence.snp_report import parse_report
from trustfabric.domain.evidence.tpm2_signature import bare_rsassa, parse_signature

GENOA = CASES["amd-sev-snp/genoa-v3-ms/good"]
TPMS = [
    case
    for name, case in CASES.items()
    if case["kind"] == "tpm" and case["expect"]["accept"]
]
JUNE = NOW.replace(month=6)


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the data with each single bit changed."""
    changed = bytearray(data)
    for bit in range(8 * len(data)):
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)
        changed[bit // 8] ^= 1 << bit % 8


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_bit_of_a_real_report_may_change() -> None:
    report, leaf = read(GENOA["report"]), read(GENOA["leaf"])
    anchors = packaged_anchors()
    parsed = snp.parse(report, leaf)
    snp.authenticate(parsed, anchors, JUNE)
    accepted, codes = [], set()

    for bit, changed in flips(report):
        try:
            snp.authenticate(
                snp.SnpEvidence(report=parse_report(changed), signer=parsed.signer),
                anchors,
                JUNE,
            )
        except Reject as reject:
            codes.add(reject.code)
        else:
            accepted.append(bit)

    assert accepted == []
    assert codes >= {Code.SIGNATURE_INVALID, Code.MALFORMED}
    assert Code.VERIFIER_FAULT not in codes


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", TPMS, ids=lambda case: case["id"])
def test_no_bit_of_a_quote_or_its_signature_may_change(case: dict[str, str]) -> None:
    attest, signed = read(case["attest"]), read(case["signature"])
    values = tpm2.read_pcrs({case["bank"]: read_json(read(case["pcrs"]), "x")})
    key = EnrolledKey.from_pem(read(case["ak"]), "maker")
    raw = case.get("signature_format", "tpmt") != "tpmt"
    read_signature = bare_rsassa if raw else parse_signature

    def holds(attest: bytes, signed: bytes) -> bool:
        try:
            quote = tpm2.parse(attest, read_signature(signed), values)
            tpm2.authenticate(quote, [key])
        except Reject:
            return False
        return True

    assert holds(attest, signed)
    accepted = [bit for bit, changed in flips(attest) if holds(changed, signed)]
    assert accepted == []
    accepted = [bit for bit, changed in flips(signed) if holds(attest, changed)]
    assert accepted == []
