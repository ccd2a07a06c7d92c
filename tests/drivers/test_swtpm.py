"""Software TPMs, live: what evidence says under tampering and reboots."""

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trustfabric.domain.attestation.appraisal import Expected, verify
from trustfabric.domain.attestation.binding import expected_of
from trustfabric.domain.attestation.model import Appraisal, Challenge, Code
from trustfabric.domain.attestation.policy import (
    DEFAULT_POLICY,
    DEMO_POLICY,
    AppraisalPolicy,
)
from trustfabric.domain.attestation.tpm import recorded_clock
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.evidence.tpm2 import TpmClock, parse_document
from trustfabric.drivers.swtpm import SoftTpms
from trustfabric.errors import InvalidError, UnavailableError, UnsupportedError

pytestmark = pytest.mark.skipif(
    shutil.which("swtpm") is None, reason="needs the Debian package swtpm"
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
TAMPERED = b"\x66" * 32


def a_challenge(vm: str = "alpha", boot: str = "1", nonce: int = 1) -> Challenge:
    return Challenge(
        kind=EvidenceKind.TPM,
        instance_id=vm,
        boot_id=boot,
        nonce=bytes([nonce]) * 32,
        issued_at=NOW,
        expires_at=NOW + timedelta(seconds=60),
    )


def judge(
    evidence: bytes,
    key: EnrolledKey,
    challenge: Challenge,
    *,
    policy: AppraisalPolicy = DEMO_POLICY,
    last_seen: TpmClock | None = None,
) -> Appraisal:
    return verify(
        EvidenceKind.TPM,
        evidence,
        expected=Expected(binding=expected_of(challenge), last_seen=last_seen),
        anchors=Anchors(keys=(key,)),
        policy=policy,
        now=NOW,
    )


@pytest.fixture
async def tpms(tmp_path: Path, executor: ThreadPoolExecutor) -> AsyncIterator[SoftTpms]:
    running = SoftTpms(tmp_path / "tpms", executor, within_s=10.0)
    yield running
    await running.close()


async def attested(tpms: SoftTpms, key: EnrolledKey, vm: str = "alpha") -> Appraisal:
    challenge = a_challenge(vm)
    return judge(await tpms.collect(vm, expected_of(challenge)), key, challenge)


async def test_tampering_is_seen_and_a_reboot_undoes_it(tpms: SoftTpms) -> None:
    await tpms.start("alpha")
    key = await tpms.enroll("alpha")
    assert (await attested(tpms, key)).code is Code.OK

    await tpms.extend("alpha", 8, TAMPERED)
    tampered = await attested(tpms, key)
    await tpms.start("alpha")
    rebooted = await attested(tpms, key)

    assert tampered.code is Code.MEASUREMENT_UNKNOWN
    assert [check.name for check in tampered.failures] == ["pcr-sha256-8"]
    assert rebooted.code is Code.OK


async def test_the_default_policy_refuses_it(tpms: SoftTpms) -> None:
    await tpms.start("alpha")
    key, challenge = await tpms.enroll("alpha"), a_challenge()
    evidence = await tpms.collect("alpha", expected_of(challenge))

    appraisal = judge(evidence, key, challenge, policy=DEFAULT_POLICY)

    assert (appraisal.code, appraisal.policy_id) == (Code.POLICY_VIOLATION, "default")


async def test_the_key_outlives_reboots_but_not_removal(tpms: SoftTpms) -> None:
    await tpms.start("alpha")
    first = await tpms.enroll("alpha")
    await tpms.start("alpha")
    assert await tpms.enroll("alpha") == first

    await tpms.remove("alpha")
    await tpms.start("alpha")

    assert await tpms.enroll("alpha") != first


async def test_each_tpm_has_its_own_key_and_state(tpms: SoftTpms) -> None:
    await asyncio.gather(tpms.start("alpha"), tpms.start("bravo"))
    alpha, bravo = await tpms.enroll("alpha"), await tpms.enroll("bravo")

    await tpms.extend("alpha", 8, TAMPERED)

    assert alpha != bravo
    assert (await attested(tpms, bravo, "bravo")).accepted


async def test_the_quote_of_another_vm_is_refused(tpms: SoftTpms) -> None:
    await asyncio.gather(tpms.start("alpha"), tpms.start("bravo"))
    alpha, bravo = await tpms.enroll("alpha"), await tpms.enroll("bravo")
    ours, theirs = a_challenge("alpha"), a_challenge("bravo")

    same_answer = await tpms.collect("bravo", expected_of(ours))
    relayed = await tpms.collect("bravo", expected_of(theirs))

    assert judge(same_answer, alpha, ours).code is Code.SIGNATURE_INVALID
    assert judge(relayed, bravo, ours).code is Code.NONCE_MISMATCH


@pytest.mark.parametrize(
    "asked", [a_challenge(nonce=2), a_challenge(boot="2"), a_challenge("bravo")]
)
async def test_the_answer_to_another_challenge_is_refused(
    tpms: SoftTpms, asked: Challenge
) -> None:
    await tpms.start("alpha")
    key = await tpms.enroll("alpha")
    evidence = await tpms.collect("alpha", expected_of(a_challenge()))

    assert judge(evidence, key, asked).code is Code.NONCE_MISMATCH


async def test_a_reboot_moves_the_clock_forward_only(tpms: SoftTpms) -> None:
    await tpms.start("alpha")
    key, challenge = await tpms.enroll("alpha"), a_challenge()
    before = await tpms.collect("alpha", expected_of(challenge))
    await tpms.start("alpha")
    after = await tpms.collect("alpha", expected_of(challenge))

    seen = recorded_clock(judge(before, key, challenge).claims)
    assert seen == parse_document(before).clock
    forward = judge(after, key, challenge, last_seen=seen)
    back = judge(before, key, challenge, last_seen=parse_document(after).clock)

    assert (forward.code, back.code) == (Code.OK, Code.POLICY_VIOLATION)


async def test_many_may_ask_at_once(tpms: SoftTpms) -> None:
    await tpms.start("alpha")
    key = await tpms.enroll("alpha")

    appraisals = await asyncio.gather(*(attested(tpms, key) for _ in range(20)))

    assert all(appraisal.accepted for appraisal in appraisals)


async def test_a_dead_tpm_is_unavailable(tpms: SoftTpms, tmp_path: Path) -> None:
    await tpms.start("alpha")
    os.kill(pid_of(tmp_path / "tpms" / "alpha"), signal.SIGKILL)

    with pytest.raises(UnavailableError):
        await tpms.collect("alpha", bytes(32))
    await tpms.start("alpha")

    assert await tpms.collect("alpha", bytes(32))


async def test_the_evidence_is_the_guest_agent_s(
    tpms: SoftTpms, tmp_path: Path
) -> None:
    """Without the program `trustfabric-agent` a TPM that is well shows nothing."""
    await tpms.start("alpha")
    key = await tpms.enroll("alpha")
    assert (await attested(tpms, key)).accepted

    os.kill(pid_of(tmp_path / "tpms" / "alpha", "trustfabric.agent"), signal.SIGKILL)

    with pytest.raises(UnavailableError, match="agent of alpha"):
        await tpms.collect("alpha", bytes(32))
    assert await tpms.enroll("alpha") == key
    await tpms.start("alpha")
    assert (await attested(tpms, key)).accepted


async def test_nothing_of_our_environment_is_handed_on(
    tpms: SoftTpms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hidden@h/d")
    folder = tmp_path / "tpms" / "alpha"

    await tpms.start("alpha")

    assert len(pids_of(folder)) == 2
    for pid in pids_of(folder):
        given = Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0").split(b"\0")
        names = {entry.split(b"=")[0] for entry in given}
        assert names <= {b"PATH", b"TRUSTFABRIC_BESIDE", b"LC_CTYPE"}


@pytest.mark.slow
async def test_a_tpm_that_hangs_is_unavailable_in_time(
    tpms: SoftTpms, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    await tpms.start("alpha")
    os.kill(pid_of(tmp_path / "tpms" / "alpha"), signal.SIGSTOP)
    hasty = SoftTpms(tmp_path / "tpms", executor, within_s=0.5)

    with pytest.raises(UnavailableError):
        await hasty.collect("alpha", bytes(32))

    await tpms.start("alpha")
    assert await tpms.collect("alpha", bytes(32))


async def test_a_stopped_tpm_is_unavailable_and_stops_once(tpms: SoftTpms) -> None:
    await tpms.start("alpha")
    assert tpms.running("alpha")

    await tpms.stop("alpha")
    await tpms.stop("alpha")

    assert not tpms.running("alpha")
    with pytest.raises(UnavailableError):
        await tpms.enroll("alpha")


async def test_one_left_over_by_an_earlier_runtime_is_killed_at_the_start(
    tpms: SoftTpms, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    await tpms.start("alpha")
    key = await tpms.enroll("alpha")
    await tpms.extend("alpha", 8, TAMPERED)
    left_over = pids_of(tmp_path / "tpms" / "alpha")

    later = SoftTpms(tmp_path / "tpms", executor)
    await later.start("alpha")

    running = pids_of(tmp_path / "tpms" / "alpha")
    assert len(left_over) == len(running) == 2
    assert not {*left_over} & {*running}
    assert (await attested(later, key)).accepted
    await later.close()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
async def test_it_dies_with_the_runtime(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, pathlib, signal, sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from trustfabric.drivers.swtpm import SoftTpms\n"
        "async def main():\n"
        "    tpms = SoftTpms(pathlib.Path(sys.argv[1]), ThreadPoolExecutor(1))\n"
        "    await tpms.start('alpha')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    runtime = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path)
    )

    assert await runtime.wait() == -signal.SIGKILL
    async with asyncio.timeout(30):
        while pids_of(tmp_path / "alpha"):
            await asyncio.sleep(0.01)


async def test_its_state_is_for_us_alone(tpms: SoftTpms, tmp_path: Path) -> None:
    await tpms.start("alpha")

    folder = tmp_path / "tpms" / "alpha"
    seeds = folder / "tpm2-00.permall"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(seeds.stat().st_mode) == 0o600


async def test_a_path_longer_than_a_socket_address_is_fine(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    tpms = SoftTpms(tmp_path / ("x" * 120), executor)

    await tpms.start("alpha")

    assert await tpms.collect("alpha", bytes(32))
    await tpms.close()


async def test_a_state_that_cannot_be_read_is_unavailable(
    tpms: SoftTpms, tmp_path: Path
) -> None:
    folder = tmp_path / "tpms" / "alpha"
    folder.mkdir(parents=True)
    (folder / "tpm2-00.permall").write_bytes(b"not a state")

    with pytest.raises(UnavailableError):
        await tpms.start("alpha")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-a", "a\n", "x" * 129])
async def test_a_name_that_is_no_folder_is_invalid(tpms: SoftTpms, name: str) -> None:
    for ask in (tpms.start(name), tpms.remove(name), tpms.collect(name, bytes(32))):
        with pytest.raises(InvalidError):
            await ask


async def test_without_swtpm_it_says_what_to_install(
    tpms: SoftTpms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(UnsupportedError, match="Debian package swtpm"):
        await tpms.start("alpha")


@pytest.mark.skipif(
    shutil.which("tpm2_checkquote") is None,
    reason="needs the Debian package tpm2-tools",
)
async def test_tpm2_checkquote_agrees(tpms: SoftTpms, tmp_path: Path) -> None:
    await tpms.start("alpha")
    key, nonce = await tpms.enroll("alpha"), b"\x2a" * 32
    quote = parse_document(await tpms.collect("alpha", nonce))
    signature = b"".join(
        (
            quote.signature.scheme.to_bytes(2, "big"),
            (0xB).to_bytes(2, "big"),
            *(len(part).to_bytes(2, "big") + part for part in quote.signature.parts),
        )
    )
    (tmp_path / "ak.der").write_bytes(key.spki)
    (tmp_path / "attest").write_bytes(quote.attest)
    (tmp_path / "signature").write_bytes(signature)
    subprocess.run(
        [
            "openssl",
            "pkey",
            "-pubin",
            "-inform",
            "DER",
            "-in",
            "ak.der",
            "-out",
            "ak.pem",
        ],
        cwd=tmp_path,
        check=True,
    )

    def agrees(qualification: bytes) -> bool:
        arguments = ["-u", "ak.pem", "-m", "attest", "-s", "signature"]
        checked = subprocess.run(
            ["tpm2_checkquote", *arguments, "-q", qualification.hex()],
            cwd=tmp_path,
            check=False,
            capture_output=True,
        )
        return checked.returncode == 0

    assert agrees(nonce)
    assert not agrees(bytes(32))


def pids_of(folder: Path) -> list[int]:
    return [*programs_of(folder).values()]


def pid_of(folder: Path, word: str = "swtpm") -> int:
    """Return the process in that folder whose command line has the word."""
    (pid,) = (pid for line, pid in programs_of(folder).items() if word in line)
    return pid


def programs_of(folder: Path) -> dict[str, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                alive = (entry / "stat").read_text().split(") ")[1][0] != "Z"
                if alive and (entry / "cwd").readlink() == folder.resolve():
                    found[(entry / "cmdline").read_text()] = int(entry.name)
    return found
