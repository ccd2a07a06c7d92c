"""Accelerators whose guest's agent fetches their challenges and pushes the answers."""

import pytest

from tests.actors.test_attested_accelerators import (  # noqa: F401  # one is a fixture
    FIRST,
    SECOND,
    Agent,
    Scene,
    machines,
)
from tests.actors.test_pushed import Guest, guest  # noqa: F401  # a fixture
from tests.domain.evidence.nvidia_devices import Device
from tests.fix_fabric import count
from trustfabric.actors.attestation import Stray
from trustfabric.db import agents
from trustfabric.domain.attestation.binding import expected_of
from trustfabric.domain.attestation.model import Challenge
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.trust import AttestationStatus

pytestmark = pytest.mark.libvirt


async def challenges(
    guest: Guest,  # noqa: F811
) -> dict[str | None, agents.Asked]:
    """Return what is there to be fetched, by the accelerator it is about."""
    async with guest.machines.database.reading() as conn:
        found = await agents.list_open(
            conn, guest.instance.id, guest.machines.clock.now()
        )
    return {one.accelerator_id: one for one in found}


async def shown(
    guest: Guest,  # noqa: F811
    asked: agents.Asked,
    device: Device,
) -> None:
    """Be told a nonce for an accelerator, and push its evidence."""
    nonce, _ = await guest.quote(asked)
    extra_data = expected_of(
        Challenge(
            kind=EvidenceKind.NVIDIA_GPU,
            instance_id=asked.instance_name,
            boot_id=str(asked.boot_id),
            nonce=nonce,
            issued_at=asked.issued_at,
            expires_at=asked.expires_at,
        )
    )
    await guest.send(asked, nonce, device.evidence(extra_data))


async def test_an_agent_is_told_a_challenge_for_each_and_pushes_its_evidence(
    guest: Guest,  # noqa: F811
) -> None:
    guest.tell("manual")
    await guest.idle()
    asked = await challenges(guest)
    scene = Scene(guest.machines, Agent(guest.machines.tpms, {}), guest.instance)

    await guest.push(asked[None])
    await shown(guest, asked[FIRST], Device())

    assert list(asked) == [None, FIRST, SECOND]
    assert {one.kind for name, one in asked.items() if name} == {"nvidia-gpu"}
    assert await scene.postures() == {FIRST: "attested", SECOND: "unknown"}
    assert list(await challenges(guest)) == [SECOND]
    row = await guest.machines.posture(guest.instance.id)
    assert row.attestation_status is AttestationStatus.TRUSTED


async def test_one_that_is_never_answered_blocks_while_its_vm_runs(
    guest: Guest,  # noqa: F811
) -> None:
    scene = Scene(guest.machines, Agent(guest.machines.tpms, {}), guest.instance)
    async with guest.machines.database.writing() as conn:
        await conn.execute("DELETE FROM runtime_vm_accelerator_posture")
    guest.tell("manual")
    await guest.idle()

    assert await scene.postures() == {FIRST: "unknown", SECOND: "unknown"}
    assert await scene.gate() == [
        f"policy_hook:accelerator_gate={FIRST}:unknown",
        f"policy_hook:accelerator_gate={SECOND}:unknown",
    ]


async def test_a_challenge_that_waits_is_not_issued_twice(
    guest: Guest,  # noqa: F811
) -> None:
    guest.tell("manual")
    await guest.idle()
    first = await challenges(guest)
    guest.tell("scheduled")
    await guest.idle()

    assert await challenges(guest) == first


async def test_evidence_of_a_gpu_answers_no_challenge_of_its_vm(
    guest: Guest,  # noqa: F811
) -> None:
    guest.tell("manual")
    await guest.idle()
    asked = await challenges(guest)

    nonce, quote = await guest.quote(asked[FIRST])
    await guest.send(asked[FIRST], nonce, quote)

    scene = Scene(guest.machines, Agent(guest.machines.tpms, {}), guest.instance)
    assert await scene.postures() == {FIRST: "untrusted", SECOND: "unknown"}
    row = await guest.machines.posture(guest.instance.id)
    assert row.attestation_status is AttestationStatus.UNKNOWN
    assert None in await challenges(guest)


async def test_a_challenge_is_answered_once(
    guest: Guest,  # noqa: F811
) -> None:
    guest.tell("manual")
    await guest.idle()
    asked = await challenges(guest)
    await shown(guest, asked[FIRST], Device())
    before = await guest.codes()

    await shown(guest, asked[FIRST], Device())

    assert (await guest.codes()).count("ok") == before.count("ok") == 1


async def test_an_answer_that_comes_too_late_is_unknown_and_asked_for_again(
    guest: Guest,  # noqa: F811
) -> None:
    guest.tell("manual")
    await guest.idle()
    late = (await challenges(guest))[FIRST]
    before = await guest.machines.posture(guest.instance.id)
    guest.machines.clock.advance(91)
    await guest.idle()

    await guest.ask(Stray(guest.instance.id, late, "the answer came too late"))
    await guest.idle()

    scene = Scene(guest.machines, Agent(guest.machines.tpms, {}), guest.instance)
    assert (await scene.postures())[FIRST] == "unknown"
    again = await challenges(guest)
    assert again[FIRST].issued.id > late.issued.id
    row = await guest.machines.posture(guest.instance.id)
    assert row.attestation_status is before.attestation_status
    recorded = await count(
        guest.machines.database,
        """
        SELECT count(*) FROM runtime_vm_attestations
         WHERE id = %s AND accelerator_id = %s AND code = 'unreachable'
        """,
        late.issued.attestation_id,
        FIRST,
    )
    assert recorded == 1


async def test_an_older_challenge_clears_no_failure_of_a_newer_one(
    guest: Guest,  # noqa: F811
) -> None:
    guest.tell("manual")
    await guest.idle()
    older = (await challenges(guest))[FIRST]
    guest.tell("post-run")
    await guest.idle()
    newer = (await challenges(guest))[FIRST]
    nonce, quote = await guest.quote(newer)
    await guest.send(newer, nonce, quote)

    await shown(guest, older, Device())

    scene = Scene(guest.machines, Agent(guest.machines.tpms, {}), guest.instance)
    assert older.issued.id < newer.issued.id
    assert (await scene.postures())[FIRST] == "untrusted"
