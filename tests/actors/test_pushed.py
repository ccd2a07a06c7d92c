"""Agents that push, by a clock that stands still; policies in force; deadlines."""

import hashlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from tests.builders import insert_run
from tests.domain.evidence.tpm_quotes import FakeTpm
from tests.fix_fabric import ASK_S, count, until
from tests.fix_machines import Machines
from trustfabric.actors.attestation import (
    CHALLENGE_TTL,
    Answer,
    Attest,
    InFlight,
    Reconsider,
    Stray,
)
from trustfabric.db import agents, policies, verdicts
from trustfabric.db.attestations import add_key
from trustfabric.db.vms import Instance
from trustfabric.domain.attestation.binding import expected_of
from trustfabric.domain.attestation.model import Challenge
from trustfabric.domain.attestation.versions import Draft, Noun, Scope, State, moved
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.evidence.tpm2 import write_document
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Signal
from trustfabric.errors import BusyError

pytestmark = pytest.mark.libvirt

AGENT = {"attestation": {"kind": "tpm", "source": "agent"}}
ZERO = bytes(32)
DAY = timedelta(days=1)


@dataclass
class Guest:
    machines: Machines
    instance: Instance
    tpm: FakeTpm

    async def asked(self) -> agents.Asked:
        """Wait for the challenge that is there to be fetched."""

        async def look() -> agents.Asked | None:
            async with self.machines.database.reading() as conn:
                found = await agents.list_open(
                    conn, self.instance.id, self.machines.clock.now()
                )
            return found[0] if found else None

        return await until(look, "a challenge")

    async def quote(self, asked: agents.Asked) -> tuple[bytes, bytes]:
        """Be told a nonce; return it and evidence for it."""
        nonce = secrets.token_bytes(32)
        digest = hashlib.sha256(nonce).digest()
        now = self.machines.clock.now()
        async with self.machines.database.writing() as conn:
            assert await agents.tell(conn, asked.issued.id, digest, now, most=9)
        challenge = Challenge(
            kind=EvidenceKind.TPM,
            instance_id=asked.instance_name,
            boot_id=str(asked.boot_id),
            nonce=nonce,
            issued_at=asked.issued_at,
            expires_at=asked.expires_at,
        )
        values = dict.fromkeys(range(9), ZERO)
        attest = self.tpm.attest(values, nonce=expected_of(challenge))
        return nonce, write_document(attest, self.tpm.sign(attest), {"sha256": values})

    async def push(self, asked: agents.Asked) -> None:
        await self.send(asked, *await self.quote(asked))

    async def send(self, asked: agents.Asked, nonce: bytes, evidence: bytes) -> None:
        await self.idle()
        await self.ask(Answer(asked, nonce, evidence))
        await self.idle()

    async def ask(self, message: Answer | Stray) -> None:
        await self.machines.attestation.ask(message, within_s=ASK_S)

    def tell(self, purpose: str) -> None:
        self.machines.attestation.tell(Attest(self.instance.id, purpose))

    async def idle(self) -> None:
        async def look() -> bool | None:
            busy = await self.machines.attestation.ask(InFlight(), within_s=ASK_S)
            return not busy or None

        await until(look, "nothing in flight")

    async def trusted(self) -> None:
        self.tell("manual")
        await self.push(await self.asked())
        await self.machines.until_posture(
            self.instance.id, attestation_status=AttestationStatus.TRUSTED
        )

    async def codes(self) -> list[str | None]:
        """Return what was recorded, oldest first."""
        async with self.machines.database.reading() as conn:
            rows = await verdicts.list_verdicts(
                conn,
                None,
                verdicts.Filter(instance_id=self.instance.id),
                before=None,
                limit=100,
            )
        return [row.code for row in rows][::-1]


@pytest_asyncio.fixture
async def guest(machines: Machines) -> AsyncIterator[Guest]:
    """A VM that runs, whose agent has a token; it was silent once, before that."""
    instance = await machines.started(**AGENT)
    await machines.until_posture(
        instance.id, attestation_status=AttestationStatus.UNKNOWN
    )
    tpm = FakeTpm(key=ec.generate_private_key(ec.SECP256R1()))
    now = machines.clock.now()
    async with machines.database.writing() as conn:
        await add_key(conn, instance.id, tpm.enrolled("swtpm"))
        await agents.add_token(
            conn,
            agents.NewToken(
                instance_id=instance.id,
                boot_id=None,
                secret_sha256=secrets.token_bytes(32),
                issued_by="test",
                issued_at=now,
                expires_at=now + DAY,
            ),
            most=1,
        )
    yield Guest(machines, instance, tpm)


async def in_force(
    guest: Guest, noun: Noun, document: dict[str, Any], **more: Any
) -> Any:
    """Add a version and activate it, behind its actor's back."""
    draft = Draft(
        noun=noun,
        name=more.pop("name", "prod"),
        scope=Scope(**more),
        document=document,
        note=None,
        created_by="test",
    )
    async with guest.machines.database.writing() as conn:
        made = await policies.insert_version(conn, draft, 1)
        return await policies.save_state(conn, moved(made, State.ACTIVE))


def a_policy(**words: Any) -> dict[str, Any]:
    tpm = {"allow_software": ["swtpm"], "pcrs": {"0": [ZERO.hex()]}}
    return {"kinds": {"tpm": tpm}, **words}


# --- answers in time and late -------------------------------------------------------


async def test_a_pushed_answer_is_fresh_from_its_challenge_on(guest: Guest) -> None:
    guest.tell("manual")
    asked = await guest.asked()
    guest.machines.clock.advance(60.0)

    await guest.push(asked)

    row = await guest.machines.posture(guest.instance.id)
    assert row.lifecycle is Lifecycle.RESTORED
    assert row.freshness_deadline == asked.issued_at + timedelta(seconds=300)


async def test_silence_becomes_unknown_when_the_challenge_is_over(
    guest: Guest,
) -> None:
    await guest.trusted()
    before = await guest.machines.posture(guest.instance.id)
    guest.tell("manual")
    await guest.asked()
    await guest.idle()

    guest.machines.clock.advance(CHALLENGE_TTL.total_seconds() + 1)

    async def look() -> bool | None:
        return (await guest.codes())[-1] == "unreachable" or None

    await until(look, "the silence to be recorded")
    row = await guest.machines.posture(guest.instance.id)
    assert row.attestation_status is AttestationStatus.TRUSTED
    assert row.freshness_deadline == before.freshness_deadline


async def test_an_answered_challenge_is_not_given_up(guest: Guest) -> None:
    await guest.trusted()
    recorded = await guest.codes()

    guest.machines.clock.advance(CHALLENGE_TTL.total_seconds() + 1)
    await guest.machines.runtime.quiet()
    await guest.idle()

    assert await guest.codes() == recorded


async def test_silence_never_clears_a_failure(guest: Guest) -> None:
    await guest.machines.change(guest.instance.id, Signal.UNTRUSTED_VERDICT)
    guest.tell("manual")
    await guest.asked()
    await guest.idle()

    guest.machines.clock.advance(CHALLENGE_TTL.total_seconds() + 1)

    async def look() -> bool | None:
        return (await guest.codes()).count("unreachable") == 2 or None

    await until(look, "the silence to be recorded")
    row = await guest.machines.posture(guest.instance.id)
    assert row.lifecycle is Lifecycle.QUARANTINED
    assert row.attestation_status is AttestationStatus.UNTRUSTED


async def test_one_challenge_is_open_however_often_it_is_wished(
    guest: Guest,
) -> None:
    guest.tell("manual")
    first = await guest.asked()
    for _ in range(3):
        guest.tell("scheduled")
        await guest.idle()

    assert (await guest.asked()).issued == first.issued


async def test_a_late_answer_is_unknown_and_challenged_anew(guest: Guest) -> None:
    guest.tell("manual")
    asked = await guest.asked()
    await guest.idle()

    await guest.ask(Stray(guest.instance.id, asked, "too late"))

    async def look() -> agents.Asked | None:
        newest = await guest.asked()
        return newest if newest.issued != asked.issued else None

    await until(look, "a new challenge")
    assert (await guest.codes())[-1] == "unreachable"


async def test_strays_are_recorded_so_often_and_no_more(guest: Guest) -> None:
    stray = Stray(guest.instance.id, None, "nobody asked")
    await guest.idle()
    await guest.ask(stray)
    await guest.idle()

    with pytest.raises(BusyError):
        await guest.ask(stray)

    guest.machines.clock.advance(6.0)
    await guest.ask(stray)
    await guest.idle()
    assert (await guest.codes()).count("nonce-mismatch") == 2


async def test_the_boot_that_came_between_is_asked_itself(guest: Guest) -> None:
    guest.tell("manual")
    asked = await guest.asked()
    nonce, evidence = await guest.quote(asked)
    guest.machines.reboot(guest.instance)

    async def look() -> agents.Asked | None:
        newest = await guest.asked()
        return newest if newest.boot_id != asked.boot_id else None

    newest = await until(look, "the new boot's challenge")
    await guest.send(asked, nonce, evidence)

    assert (await guest.machines.posture(guest.instance.id)).lifecycle is (
        Lifecycle.SUSPECT
    )
    await guest.push(newest)
    assert (await guest.machines.posture(guest.instance.id)).lifecycle is (
        Lifecycle.RESTORED
    )


# --- after a run --------------------------------------------------------------------


async def test_only_a_challenge_from_after_the_run_restores(guest: Guest) -> None:
    machines, instance = guest.machines, guest.instance
    guest.tell("manual")
    early = await guest.asked()
    nonce, evidence = await guest.quote(early)
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)
    await machines.change(instance.id, Signal.RUN_STAGED)
    machines.clock.advance(5.0)
    async with machines.database.writing() as conn:
        run_id = await insert_run(conn, instance.id)
        await conn.execute(
            "UPDATE runtime_vm_remediation_runs SET status = 'completed',"
            " completed_at = %s WHERE id = %s",
            (machines.clock.now(), run_id),
        )
    machines.clock.advance(5.0)

    await guest.send(early, nonce, evidence)
    between = await machines.posture(instance.id)
    guest.tell("post-run")
    await guest.idle()
    late = await guest.asked()
    await guest.push(late)

    assert between.lifecycle is Lifecycle.REMEDIATING
    assert late.issued != early.issued
    assert (await machines.posture(instance.id)).lifecycle is Lifecycle.RESTORED


async def test_after_a_run_what_was_asked_before_is_not_asked_on(
    guest: Guest,
) -> None:
    guest.tell("manual")
    early = await guest.asked()
    await guest.idle()

    guest.tell("post-run")
    await guest.idle()

    assert (await guest.asked()).issued != early.issued


async def test_a_reboot_counts_though_no_verdict_is_reached(guest: Guest) -> None:
    machines = guest.machines
    await guest.trusted()
    boot_id = (await machines.read(guest.instance.id)).boot_id
    unmeasured = {"kinds": {"tpm": {"allow_software": ["swtpm"]}}}
    await in_force(guest, Noun.POLICIES, unmeasured)
    guest.tpm = replace(guest.tpm, resets=guest.tpm.resets + 1)

    guest.tell("manual")
    await guest.push(await guest.asked())
    await guest.idle()

    row = await machines.posture(guest.instance.id)
    assert row.lifecycle is Lifecycle.SUSPECT
    assert (await machines.read(guest.instance.id)).boot_id != boot_id
    await guest.push(await guest.asked())
    assert (await guest.codes())[-1] == "no-reference-values"


# --- policies -----------------------------------------------------------------------


async def test_the_most_specific_policy_judges(guest: Guest) -> None:
    await in_force(guest, Noun.POLICIES, a_policy(), name="all")
    await in_force(guest, Noun.POLICIES, a_policy(), name="image", image="demo")
    await in_force(
        guest, Noun.POLICIES, a_policy(), name="mine", owner_id=guest.instance.owner_id
    )
    await in_force(guest, Noun.POLICIES, a_policy(), name="other", image="else")

    await guest.trusted()

    row = await guest.machines.posture(guest.instance.id)
    assert row.provenance is not None
    assert row.provenance["policy"] == {"id": "mine", "version": 1}


async def test_a_policy_may_want_evidence_sooner_than_the_scheduler(
    guest: Guest,
) -> None:
    await in_force(guest, Noun.POLICIES, a_policy(max_age_s=20))
    await guest.trusted()
    row = await guest.machines.posture(guest.instance.id)
    answered = await guest.codes()

    guest.machines.clock.advance(11.0)
    await guest.push(await guest.asked())

    assert row.freshness_deadline is not None
    assert row.freshness_deadline - row.updated_at == timedelta(seconds=20)
    assert await guest.codes() == [*answered, "ok"]


async def test_a_policy_never_makes_evidence_last_longer_than_the_setting(
    guest: Guest,
) -> None:
    await in_force(guest, Noun.POLICIES, a_policy(max_age_s=86_400))

    await guest.trusted()

    row = await guest.machines.posture(guest.instance.id)
    assert row.freshness_deadline == guest.machines.clock.now() + timedelta(seconds=300)


async def test_a_deprecated_policy_keeps_its_own_end_of_what_it_accepts(
    guest: Guest,
) -> None:
    machines = guest.machines
    old = await in_force(guest, Noun.POLICIES, a_policy(max_age_s=20))
    strict: dict[str, Any] = {"kinds": {"tpm": {"pcrs": {"0": ["66" * 32]}}}}
    async with machines.database.writing() as conn:
        until = machines.clock.now() + DAY
        await policies.save_state(conn, moved(old, State.DEPRECATED, until))
        draft = Draft(
            noun=Noun.POLICIES,
            name=old.name,
            scope=old.scope,
            document=strict,
            note=None,
            created_by="test",
        )
        made = await policies.insert_version(conn, draft, 2)
        await policies.save_state(conn, moved(made, State.ACTIVE))

    await guest.trusted()

    row = await machines.posture(guest.instance.id)
    assert row.freshness_deadline == machines.clock.now() + timedelta(seconds=20)


async def test_a_change_has_all_that_it_is_about_challenged(guest: Guest) -> None:
    await guest.trusted()
    asked = await count(
        guest.machines.database, "SELECT count(*) FROM attestation_challenges"
    )

    guest.machines.attestation.tell(Reconsider(Scope(image="else")))
    guest.machines.attestation.tell(Reconsider(Scope(image="demo")))

    await guest.asked()
    assert asked + 1 == await count(
        guest.machines.database, "SELECT count(*) FROM attestation_challenges"
    )


async def test_what_verdicts_were_judged_by_is_kept_once(guest: Guest) -> None:
    await guest.trusted()
    await guest.trusted()

    bases = await count(
        guest.machines.database,
        "SELECT count(DISTINCT basis_sha256) FROM runtime_vm_attestations",
    )
    kept = await count(
        guest.machines.database, "SELECT count(*) FROM attestation_bases"
    )
    assert bases == kept == 1
