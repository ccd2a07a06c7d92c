"""Evidence under attack and under faults (security cases S21, S22, S33)."""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.actors.test_attestation import MEASURED, Gate, attested, idle, slow
from tests.domain.evidence.snp_platform import Platform
from tests.fix_fabric import until
from tests.fix_machines import Machines, some_machines
from trustfabric.actors.attestation import Attest
from trustfabric.db.session import Database
from trustfabric.db.vms import Instance
from trustfabric.domain.evidence import snp
from trustfabric.domain.evidence.tpm2_signature import verifies
from trustfabric.domain.trust import AttestationStatus, Lifecycle
from trustfabric.drivers.swtpm import SoftTpms

pytestmark = pytest.mark.libvirt


@dataclass
class Answers:
    """A source that a test decides about; asked for nothing it answers as it is."""

    tpms: SoftTpms
    instead: Callable[[str, bytes], Awaitable[bytes]] | None = None
    given: list[bytes] = field(default_factory=list)

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        if self.instead is not None:
            return await self.instead(name, extra_data)
        self.given.append(await self.tpms.collect(name, extra_data))
        return self.given[-1]


async def in_our_hands(machines: Machines) -> Answers:
    answers = Answers(machines.tpms)
    machines.sources["swtpm"] = answers
    await idle(machines)
    await machines.kill("fabric/attestation")
    return answers


# --- S21: replays, strangers, others' evidence ----------------------------------------


async def test_s21_an_answer_to_an_earlier_challenge_is_untrusted(
    machines: Machines,
) -> None:
    instance = await machines.restored()
    answers = await in_our_hands(machines)
    await attested(machines, instance)

    async def replay(name: str, extra_data: bytes) -> bytes:
        return answers.given[0]

    answers.instead = replay
    event = await attested(machines, instance)

    assert event.reason == "attestation:nonce-mismatch"
    assert event.lifecycle is Lifecycle.QUARANTINED


async def test_s21_the_evidence_of_a_healthy_vm_does_not_stand_for_another(
    machines: Machines,
) -> None:
    healthy, tampered = await machines.restored(), await machines.restored()
    await machines.tpms.extend(tampered.name, 8, MEASURED)
    answers = await in_our_hands(machines)

    async def relay(name: str, extra_data: bytes) -> bytes:
        return await machines.tpms.collect(healthy.name, extra_data)

    answers.instead = relay
    event = await attested(machines, tampered)

    assert event.reason == "attestation:signature-invalid"
    assert event.lifecycle is Lifecycle.QUARANTINED


async def test_s21_a_new_tpm_does_not_enrol_itself(machines: Machines) -> None:
    instance = await machines.restored()
    await machines.tpms.remove(instance.name)

    # As a boot would: a key was enrolled once, and no boot brings its own.
    await machines.tpms.start(instance.name)
    machines.reboot(instance)
    row = await machines.until_posture(instance.id, lifecycle=Lifecycle.QUARANTINED)

    assert row.attestation_status is AttestationStatus.UNTRUSTED


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"null", b"\xff" * 100, b"[" * 60_000, b"x" * 1_000_000, b'{"kind":"ear"}'],
    ids=range(6),
)
async def test_s21_nonsense_is_untrusted_and_no_crash(
    machines: Machines, nonsense: bytes
) -> None:
    instance = await machines.restored()
    answers = await in_our_hands(machines)

    async def talk(name: str, extra_data: bytes) -> bytes:
        return nonsense

    answers.instead = talk
    event = await attested(machines, instance)

    assert event.reason == "attestation:malformed"


@pytest.mark.parametrize("text", [b"SEV\0Milan", b"SEV\nMilan", b"SEV\xffMilan"])
async def test_s31_what_a_guest_says_never_keeps_its_verdict_from_being_recorded(
    machines: Machines, text: bytes
) -> None:
    """Names in certificates are its own words: a database takes no NUL in a text."""
    chip = Platform()
    leaf = chip.leaf().replace(b"SEV-Milan", text)
    assert text in leaf
    instance = await machines.started(
        attestation={"kind": "amd-sev-snp", "source": "swtpm"}
    )
    answers = await in_our_hands(machines)

    async def show(name: str, extra_data: bytes) -> bytes:
        return snp.write_document(chip.report(), leaf)

    answers.instead = show
    event = await attested(machines, instance)

    assert event.reason == "attestation:chain-invalid"
    assert event.lifecycle is Lifecycle.QUARANTINED
    assert event.provenance is not None
    (failed,) = event.provenance["checks"]
    assert failed["actual"].startswith("SEV")
    assert failed["actual"].isprintable()


# --- S22: faults at each step -----------------------------------------------------


async def a_tampered_suspect(machines: Machines) -> tuple[Instance, Gate]:
    """Return one that nothing honest could ever call trusted, about to answer."""
    instance = await machines.restored()
    gate = await slow(machines)
    await machines.tpms.extend(instance.name, 8, MEASURED)
    machines.reboot(instance)
    await gate.begun.wait()
    return instance, gate


async def never_trusted(machines: Machines, instance: Instance) -> None:
    """What became of it: refused in the end, and trusted at no moment since."""
    history = await machines.history(instance.id)
    booted = max(
        number
        for number, event in enumerate(history)
        if event.reason == "guest rebooted"
    )
    statuses = {event.status for event in history[booted:]}
    assert AttestationStatus.TRUSTED not in statuses
    row = await machines.posture(instance.id)
    assert row.attestation_status is not AttestationStatus.TRUSTED
    assert row.lifecycle is not Lifecycle.RESTORED


async def test_s22_killed_while_it_waits_for_evidence(machines: Machines) -> None:
    instance, gate = await a_tampered_suspect(machines)

    await machines.kill("fabric/attestation")
    await never_trusted(machines, instance)
    gate.go.set()
    await machines.until_posture(instance.id, lifecycle=Lifecycle.QUARANTINED)

    await never_trusted(machines, instance)


async def test_s22_killed_while_the_verdict_is_recorded(machines: Machines) -> None:
    instance, gate = await a_tampered_suspect(machines)

    machines.runtime.suspend("fabric/trust")
    gate.go.set()

    async def told() -> bool | None:
        return machines.trust.cell.depth > 0 or None

    await until(told, "the verdict to be told")
    await machines.kill("fabric/trust")
    machines.runtime.resume("fabric/trust")
    await machines.kill("fabric/attestation")
    await machines.until_posture(instance.id, lifecycle=Lifecycle.QUARANTINED)

    await never_trusted(machines, instance)


@pytest.mark.parametrize(
    "fault", [RuntimeError("bug"), OSError("cut"), TimeoutError(), EOFError()], ids=repr
)
async def test_s22_whatever_goes_wrong_while_collecting_nothing_is_trusted(
    machines: Machines, fault: Exception
) -> None:
    instance = await machines.started(attestation={"kind": "tpm"})
    await idle(machines)
    answers = Answers(machines.tpms)
    machines.sources["agent"] = answers
    await machines.kill("fabric/attestation")
    faults = 3

    async def fail(name: str, extra_data: bytes) -> bytes:
        nonlocal faults
        faults -= 1
        if faults == 0:
            answers.instead = silent
        raise fault

    async def silent(name: str, extra_data: bytes) -> bytes:
        raise TimeoutError

    answers.instead = fail
    machines.attestation.tell(Attest(instance.id, "manual"))

    async def over() -> bool | None:
        machines.clock.advance(0.1)
        if faults > 0:
            with suppress(Exception):
                machines.attestation.tell(Attest(instance.id, "manual"))
        return faults <= 0 or None

    await until(over, "the faults to be over")
    row = await machines.posture(instance.id)
    assert row.attestation_status in ("unknown", "pending")
    assert row.lifecycle is Lifecycle.SUSPECT


async def test_s22_a_verifier_that_fails_is_unknown(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is made where a library of others is called."""
    instance = await machines.restored()

    def broken(*_: object) -> bool:
        raise MemoryError

    monkeypatch.setattr("trustfabric.domain.evidence.tpm2.verifies", broken)
    event = await attested(machines, instance)

    assert event.reason == "attestation:verifier-fault"
    assert event.lifecycle is Lifecycle.RESTORED
    assert event.metadata["purpose"] == "manual"


async def test_s22_verification_never_holds_up_the_event_loop(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = await machines.restored()
    threads: list[str] = []

    def noted(*arguments: Any) -> bool:
        threads.append(threading.current_thread().name)
        return verifies(*arguments)

    monkeypatch.setattr("trustfabric.domain.evidence.tpm2.verifies", noted)
    event = await attested(machines, instance)

    assert event.status is AttestationStatus.TRUSTED
    assert threads
    assert threading.main_thread().name not in threads


# --- S33: our own clock jumps ---------------------------------------------------------


@pytest.fixture
async def scheduled(
    database: Database, database_url: str, tpm_dir: Path
) -> AsyncIterator[Machines]:
    async with some_machines(database, database_url, tpm_dir, schedules=True) as made:
        yield made


async def test_s33_going_back_keeps_nothing_fresh_for_longer(
    scheduled: Machines,
) -> None:
    instance = await scheduled.restored()
    before = await scheduled.posture(instance.id)
    assert before.freshness_deadline is not None

    scheduled.clock._start -= timedelta(hours=1)
    await scheduled.tpms.extend(instance.name, 8, MEASURED)
    scheduled.clock.advance(10.0)
    row = await scheduled.until_posture(instance.id, lifecycle=Lifecycle.QUARANTINED)

    assert row.attestation_status is AttestationStatus.UNTRUSTED
    assert scheduled.clock.now() < before.updated_at


async def test_s33_going_forward_makes_what_was_fresh_stale(
    scheduled: Machines,
) -> None:
    instance = await scheduled.restored()
    await scheduled.tpms.stop(instance.name)

    scheduled.clock._start += timedelta(hours=1)
    scheduled.clock.advance(10.0)

    row = await scheduled.until_posture(instance.id, lifecycle=Lifecycle.SUSPECT)
    assert row.freshness_deadline is None


async def test_s33_the_deadline_is_counted_from_the_challenge(
    machines: Machines,
) -> None:
    instance = await machines.restored()
    gate = await slow(machines)
    asked = machines.clock.now()

    machines.attestation.tell(Attest(instance.id, "manual"))
    await gate.begun.wait()
    machines.clock.advance(60.0)
    gate.go.set()
    await idle(machines)

    row = await machines.posture(instance.id)
    assert row.freshness_deadline == asked + timedelta(seconds=300)
