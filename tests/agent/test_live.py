"""The whole story of a live software TPM, for each sort of key and bank."""

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trustfabric.agent.answers import Sources, answer
from trustfabric.agent.main import main
from trustfabric.agent.tpm import AK_ECC, AK_RSA, Tpm
from trustfabric.agent.transport import UnansweredError, UnreachableError, open_tpm
from trustfabric.domain.attestation.appraisal import Expected, unreachable, verify
from trustfabric.domain.attestation.model import Appraisal, Code
from trustfabric.domain.attestation.policy import (
    AppraisalPolicy,
    Bank,
    Kinds,
    TpmPolicy,
)
from trustfabric.domain.attestation.tpm import recorded_clock
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.evidence.tpm2 import TpmClock, parse_document
from trustfabric.domain.trust import AttestationStatus
from trustfabric.drivers.swtpm import SoftTpms

pytestmark = pytest.mark.skipif(
    shutil.which("swtpm") is None, reason="needs the Debian package swtpm"
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NONCE = bytes(range(32))
KEYS = {"ecdsa": AK_ECC, "rsa": AK_RSA}
SIZES: dict[Bank, int] = {"sha256": 32, "sha384": 48}
ALGORITHMS = {"sha256": 0xB, "sha384": 0xC}


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
async def tpms(tmp_path: Path, executor: ThreadPoolExecutor) -> AsyncIterator[SoftTpms]:
    running = SoftTpms(tmp_path / "tpms", executor, within_s=10.0)
    await running.start("alpha")
    yield running
    await running.close()


@pytest.fixture(params=KEYS)
def template(request: pytest.FixtureRequest) -> bytes:
    return KEYS[request.param]


@pytest.fixture(params=SIZES)
def bank(request: pytest.FixtureRequest) -> Bank:
    chosen: Bank = request.param
    return chosen


@pytest.fixture
def sources(tmp_path: Path, template: bytes, bank: Bank) -> Sources:
    socket = tmp_path / "tpms" / "alpha" / "tpm.sock"
    return Sources(tpm=socket, bank=bank, template=template)


def enrolled(sources: Sources) -> EnrolledKey:
    with (
        open_tpm(sources.tpm, 10.0) as transport,
        Tpm(transport).attestation_key(sources.template) as key,
    ):
        return EnrolledKey.from_tpmt(key.public, "swtpm")


def judge(
    evidence: bytes, key: EnrolledKey, bank: Bank, last_seen: TpmClock | None = None
) -> Appraisal:
    policy = TpmPolicy(
        banks=(bank,),
        allow_software=("swtpm",),
        pcrs=dict.fromkeys(range(9), ("00" * SIZES[bank],)),
    )
    return verify(
        EvidenceKind.TPM,
        evidence,
        expected=Expected(binding=NONCE, last_seen=last_seen),
        anchors=Anchors(keys=(key,)),
        policy=AppraisalPolicy(id="test", version=1, kinds=Kinds(tpm=policy)),
        now=NOW,
    )


async def test_the_story(tpms: SoftTpms, sources: Sources, bank: Bank) -> None:
    key = enrolled(sources)
    fresh = judge(answer(EvidenceKind.TPM, NONCE, sources), key, bank)
    seen = recorded_clock(fresh.claims)
    assert (fresh.code, seen is None) == (Code.OK, False)

    # Tampered with: the register tells, whatever signs.
    with open_tpm(sources.tpm, 10.0) as transport:
        Tpm(transport).pcr_extend(4, bank, b"\x66" * SIZES[bank])
    tampered = judge(answer(EvidenceKind.TPM, NONCE, sources), key, bank, seen)
    assert tampered.code is Code.MEASUREMENT_UNKNOWN
    assert [check.name for check in tampered.failures] == [f"pcr-{bank}-4"]

    # Booted again: clean, under the same key, and its clock says so.
    await tpms.start("alpha")
    rebooted = judge(answer(EvidenceKind.TPM, NONCE, sources), key, bank, seen)
    after = recorded_clock(rebooted.claims)
    assert rebooted.code is Code.OK
    assert seen is not None
    assert after is not None
    assert after.resets_since(seen) == 1
    replayed = judge(answer(EvidenceKind.TPM, NONCE, sources), key, bank, after)
    assert replayed.code is Code.OK

    # Dead: nothing is known, and nothing is held against it.
    await tpms.stop("alpha")
    with pytest.raises(UnansweredError) as silent:
        answer(EvidenceKind.TPM, NONCE, sources)
    assert isinstance(silent.value.__cause__, UnreachableError)
    verdict = unreachable(
        EvidenceKind.TPM,
        AppraisalPolicy(id="test", version=1),
        NOW,
        str(silent.value),
    )
    assert verdict.status is AttestationStatus.UNKNOWN


async def test_the_evidence_of_before_a_reboot_is_refused_after_it(
    tpms: SoftTpms, sources: Sources, bank: Bank
) -> None:
    key = enrolled(sources)
    before = answer(EvidenceKind.TPM, NONCE, sources)
    await tpms.start("alpha")
    after = judge(answer(EvidenceKind.TPM, NONCE, sources), key, bank)

    again = judge(before, key, bank, recorded_clock(after.claims))

    assert again.code is Code.POLICY_VIOLATION
    assert [check.name for check in again.failures] == ["tpm-clock"]


@pytest.mark.skipif(
    shutil.which("tpm2_checkquote") is None,
    reason="needs the Debian package tpm2-tools",
)
async def test_tpm2_checkquote_agrees(
    tpms: SoftTpms, sources: Sources, bank: Bank, tmp_path: Path
) -> None:
    key = enrolled(sources)
    quote = parse_document(answer(EvidenceKind.TPM, NONCE, sources))
    head = (quote.signature.scheme, ALGORITHMS[quote.signature.hash])
    parts = (len(part).to_bytes(2, "big") + part for part in quote.signature.parts)
    (tmp_path / "ak.der").write_bytes(key.spki)
    (tmp_path / "attest").write_bytes(quote.attest)
    (tmp_path / "signature").write_bytes(
        b"".join((*(word.to_bytes(2, "big") for word in head), *parts))
    )
    (tmp_path / "flipped").write_bytes(quote.attest[:-1] + b"\x00")
    subprocess.run(
        ["openssl", "pkey", "-pubin", "-inform", "DER", "-in", "ak.der", "-out", "ak"],
        cwd=tmp_path,
        check=True,
    )

    def agrees(attest: str, nonce: bytes) -> bool:
        words = ["-u", "ak", "-m", attest, "-s", "signature", "-q", nonce.hex()]
        checked = subprocess.run(
            ["tpm2_checkquote", *words], cwd=tmp_path, check=False, capture_output=True
        )
        return checked.returncode == 0

    assert agrees("attest", NONCE)
    assert not agrees("attest", bytes(32))
    assert not agrees("flipped", NONCE)


async def test_the_program_answers_for_each(
    tpms: SoftTpms, sources: Sources, bank: Bank, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithm = "rsa" if sources.template == AK_RSA else "ecc"
    words = ["--tpm", str(sources.tpm), "quote", NONCE.hex()]

    code = main([*words, "--bank", bank, "--algorithm", algorithm])

    evidence = capsys.readouterr().out.strip().encode()
    assert code == 0
    assert judge(evidence, enrolled(sources), bank).code is Code.OK
