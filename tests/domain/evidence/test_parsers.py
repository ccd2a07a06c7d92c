"""Whatever bytes come, parsers raise nothing but Reject, and stay within bounds."""

import base64
import json
from collections.abc import Callable
from time import process_time
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.domain.evidence.snp_platform import NOW
from tests.domain.test_attestation_vectors import CASES, read
from trustfabric.agent import serve
from trustfabric.agent.transport import UnansweredError
from trustfabric.domain.attestation.appraisal import Expected, judge, verify
from trustfabric.domain.attestation.case_kinds import QUESTIONS
from trustfabric.domain.attestation.casefile import Case
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.policy import (
    DEFAULT_POLICY,
    DEMO_POLICY,
    parse_policy,
)
from trustfabric.domain.evidence import azure, der, ear, nvidia, snp, tdx, tpm2
from trustfabric.domain.evidence.certificate import common_name, parse_certificate
from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.documents import read_json, read_object
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import (
    Authenticated,
    Code,
    EvidenceKind,
    Reject,
)
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.domain.evidence.snp_chain import parse_signer, signed_crl
from trustfabric.domain.evidence.snp_report import parse_report
from trustfabric.domain.evidence.snp_table import parse_table
from trustfabric.domain.evidence.tdx_collateral import sound_collateral
from trustfabric.domain.evidence.tpm2_public import parse_public
from trustfabric.domain.evidence.tpm2_signature import parse_signature
from trustfabric.errors import InvalidError

Parser = Callable[[bytes], object]


def parsed_policy(raw: bytes) -> object:
    """An operator's document: it is refused with an error of its own."""
    try:
        return parse_policy(raw)
    except InvalidError as error:
        raise Reject(Code.MALFORMED, "policy", str(error)[:100]) from None


SIGNATURE = parse_signature(read("tpm/swtpm-ecc.sig.bin"))
PCRS = tpm2.read_pcrs({"sha256": json.loads(read("tpm/swtpm-ecc.pcrs.json"))})
CHAIN = read("nvidia-gpu/h100-sample.chain.pem")
REPORT = read("nvidia-gpu/h100-sample.report.bin")
VCEK = read("amd-sev-snp/milan-v2-trustee.vcek.der")


def verdict_on(name: str, role: str) -> tuple[Parser, bytes]:
    """Return the whole judgement of a good case with one of its files another.

    A fault of the verifier would be `unknown`, which is what silence gets: whoever
    could cause one would never be quarantined.
    """
    case = CASES[name]

    def judged(raw: bytes) -> Appraisal:
        def files(wanted: str) -> bytes:
            return raw if wanted == "another" else read(wanted)

        question = QUESTIONS[case["kind"]](
            Case({**case, role: "another"}, files), packaged_anchors()
        )
        appraisal = judge(
            question.kind,
            question.present,
            expected=Expected(binding=question.binding),
            policy=question.policy,
            now=question.now,
        )
        assert appraisal.code is not Code.VERIFIER_FAULT, appraisal.notes()
        assert all(note.isprintable() for note in appraisal.notes())
        return appraisal

    return judged, read(case[role])


PARSERS: dict[str, tuple[Parser, bytes]] = {
    "verdict on attest": verdict_on("tpm/swtpm-ecc/good", "attest"),
    "verdict on signature": verdict_on("tpm/swtpm-ecc/good", "signature"),
    "verdict on report": verdict_on("amd-sev-snp/genoa-v3-ms/good", "report"),
    "verdict on leaf": verdict_on("amd-sev-snp/milan-v2-trustee/good", "leaf"),
    "verdict on quote": verdict_on("intel-tdx/v4-uptodate-phala/good", "quote"),
    "verdict on hcl": verdict_on("composite-azure-vtpm/snp-v0/good", "hcl"),
    "verdict on spdm": verdict_on("nvidia-gpu/h100-sample/good", "report"),
    "verdict on chain": verdict_on("nvidia-gpu/h100-sample/good", "chain"),
    "verdict on token": verdict_on("ear/affirming", "token"),
    "attest": (
        lambda raw: tpm2.parse(raw, SIGNATURE, PCRS),
        read("tpm/swtpm-ecc.attest.bin"),
    ),
    "signature": (parse_signature, read("tpm/keylime-files.sig.bin")),
    "public": (
        parse_public,
        bytes.fromhex("0023000B000504720000001000180 00B00030010".replace(" ", ""))
        + b"\0\x20" * 2,
    ),
    "pem": (lambda raw: EnrolledKey.from_pem(raw, "x"), read("tpm/swtpm-ecc.ak.pem")),
    "certificate": (lambda raw: parse_certificate(raw, "x"), VCEK),
    "signer": (parse_signer, VCEK),
    "name": (common_name, parse_certificate(VCEK, "x").issuer),
    "report": (parse_report, read("amd-sev-snp/milan-v2-trustee.report.bin")),
    "hcl": (azure.parse_hcl, read("composite-azure-vtpm/snp-v0.hcl.bin")),
    "spdm": (lambda raw: nvidia.parse(raw, CHAIN), REPORT),
    "chain": (lambda raw: nvidia.parse(REPORT, raw), CHAIN),
    "quote": (tdx.parse, read("intel-tdx/v4-uptodate-phala.quote.bin")),
    "token": (ear.parse, read("ear/affirming.jwt")),
    "json": (lambda raw: read_json(raw, "x"), b'{"a": [1, {"b": null}]}'),
    "tpm document": (
        tpm2.parse_document,
        tpm2.write_document(
            read("tpm/swtpm-ecc.attest.bin"), read("tpm/swtpm-ecc.sig.bin"), PCRS
        ),
    ),
    "snp document": (
        snp.parse_document,
        snp.write_document(read("amd-sev-snp/milan-v2-trustee.report.bin"), VCEK),
    ),
    "tdx document": (
        tdx.parse_document,
        tdx.write_document(read("intel-tdx/v4-uptodate-phala.quote.bin")),
    ),
    "azure document": (azure.parse_document, b'{"kind":"composite-azure-vtpm"}'),
    "nvidia document": (nvidia.parse_document, b'{"kind":"nvidia-gpu","report":""}'),
    "ear document": (ear.parse_document, b'{"kind":"ear","token":"a.b.c"}'),
    "key document": (
        lambda raw: EnrolledKey.from_document(read_object(raw, "x")),
        json.dumps(
            EnrolledKey.from_pem(read("tpm/swtpm-ecc.ak.pem"), "x").document()
        ).encode(),
    ),
    "jwk": (
        lambda raw: EnrolledKey.from_jwk(read_object(raw, "x"), "x"),
        read("ear/affirming.jwk.json"),
    ),
    "pcrs": (
        lambda raw: tpm2.read_pcrs({"sha256": read_json(raw, "x")}),
        read("tpm/swtpm-ecc.pcrs.json"),
    ),
    "revocations": (
        lambda raw: signed_crl(raw, read("amd-sev-snp/synthetic-dev.ark.pem")),
        read("amd-sev-snp/synthetic-dev.revoked-ask.crl.der"),
    ),
    "certificates": (
        parse_table,
        UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes
        + bytes.fromhex("3000000002000000")
        + bytes(24)
        + b"ab",
    ),
    "policy": (
        parsed_policy,
        json.dumps(DEMO_POLICY.document()).encode(),
    ),
    "question": (
        serve._question,
        b'{"extra_data":"00ff","kind":"tpm"}',
    ),
    "collateral": (
        lambda raw: sound_collateral(raw, packaged_anchors().intel or b""),
        read("intel-tdx/v4-uptodate-phala.collateral.json"),
    ),
    "elements": (lambda raw: list(der.elements(raw, "x")), VCEK),
    "oid": (lambda raw: der.oid(raw, "x"), bytes.fromhex("2b060104019c78")),
}


def parses(parser: Parser, raw: bytes) -> bool:
    try:
        parser(raw)
    except (Reject, UnansweredError):
        return False
    return True


@pytest.mark.parametrize("name", PARSERS)
@given(raw=st.binary(max_size=2048))
@example(raw=b"")
@example(raw=b"\x30\x84\xff\xff\xff\xff")
def test_arbitrary_bytes_are_parsed_or_rejected(name: str, raw: bytes) -> None:
    parser, _ = PARSERS[name]

    parses(parser, raw)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_damaged_evidence_is_parsed_or_rejected(name: str, data: st.DataObject) -> None:
    parser, good = PARSERS[name]
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(
            st.integers(0, 255)
        )
    start = data.draw(st.sampled_from([0, 0, 1]))
    end = data.draw(st.sampled_from([len(good), len(good), len(good) // 2]))

    parses(parser, bytes(damaged[start:end]))


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    "filling", [b"\0", b"\xff", b"\x30\x80", b"[", b'{"a":', b"A."]
)
def test_sixty_four_kilobytes_take_no_time(name: str, filling: bytes) -> None:
    parser, _ = PARSERS[name]
    raw = filling * (65536 // len(filling))

    began = process_time()
    parses(parser, raw)

    assert process_time() - began < 10.0  # what grows with the square takes minutes


@pytest.mark.parametrize("kind", EvidenceKind)
@given(raw=st.binary(max_size=512))
def test_verification_always_comes_to_an_answer_and_never_trusts_noise(
    kind: EvidenceKind, raw: bytes
) -> None:
    appraisal = verify(
        kind,
        raw,
        expected=Expected(binding=bytes(32)),
        anchors=packaged_anchors(),
        policy=DEFAULT_POLICY,
        now=NOW,
    )

    assert appraisal.code is Code.MALFORMED


@pytest.mark.parametrize("kind", EvidenceKind)
def test_evidence_of_another_kind_than_asked_for_is_malformed(
    kind: EvidenceKind,
) -> None:
    for other in set(EvidenceKind) - {kind}:
        document = json.dumps({"kind": other}).encode()

        appraisal = verify(
            kind,
            document,
            expected=Expected(binding=bytes(32)),
            anchors=packaged_anchors(),
            policy=DEFAULT_POLICY,
            now=NOW,
        )

        assert appraisal.code is Code.MALFORMED


def test_claims_are_authenticated_by_an_authenticator_only() -> None:
    with pytest.raises(TypeError):
        Authenticated(
            kind=EvidenceKind.TPM,
            claims="mine",
            region_sha256="",
            endorsements={},
        )


@pytest.mark.parametrize(
    "raw",
    ["3081", "308000", "30810101", "3082000101", "3085010203040500", "0304"],
)
def test_der_has_one_length_for_each_value(raw: str) -> None:
    with pytest.raises(Reject):
        der.read(Cursor(bytes.fromhex(raw), "x"))


def test_a_certificate_has_one_algorithm() -> None:
    changed = VCEK.replace(bytes.fromhex("a203020130a303020101"), bytes(10), 1)

    with pytest.raises(Reject, match="algorithm"):
        parse_certificate(changed, "x")


def test_a_pem_certificate_is_the_same_as_its_der() -> None:
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(VCEK)
    pem += b"-----END CERTIFICATE-----\n"

    assert parse_certificate(pem, "x") == parse_certificate(VCEK, "x")
