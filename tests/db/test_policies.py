"""Which versions judge an instance, and whom a version is about."""

from datetime import timedelta
from typing import Any

import pytest

from tests.fix_fabric import RUNTIME, Fabric
from trustfabric.db import policies, vms
from trustfabric.domain.attestation.policy import DEFAULT_POLICY
from trustfabric.domain.attestation.versions import (
    Draft,
    Noun,
    Scope,
    State,
    Version,
    moved,
)
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.ids import OwnerId
from trustfabric.domain.vms import PowerState
from trustfabric.errors import ConflictError

HOUR = timedelta(hours=1)
VALUES = {"kind": "tpm", "values": {"pcr-7": ["00" * 32]}}


async def add(
    fabric: Fabric,
    name: str,
    state: State = State.ACTIVE,
    *,
    noun: Noun = Noun.POLICIES,
    number: int = 1,
    until: timedelta = HOUR,
    **scope: Any,
) -> Version:
    draft = Draft(
        noun=noun,
        name=name,
        scope=Scope(**scope),
        document={} if noun is Noun.POLICIES else VALUES,
        note=None,
        created_by="test",
    )
    async with fabric.database.writing() as conn:
        made = await policies.insert_version(conn, draft, number)
        if state is State.STAGED:
            return made
        if state is State.DEPRECATED:
            made = await policies.save_state(conn, moved(made, State.ACTIVE))
        after = moved(made, state, fabric.clock.now() + until)
        return await policies.save_state(conn, after)


async def basis(fabric: Fabric, whose: Scope) -> Any:
    async with fabric.database.reading() as conn:
        return await policies.basis_for(
            conn, whose, EvidenceKind.TPM, DEFAULT_POLICY, fabric.clock.now()
        )


async def owner(fabric: Fabric) -> OwnerId:
    instance = await fabric.instance()
    return (await fabric.posture(instance)).owner_id


async def test_without_any_policy_the_default_judges(fabric: Fabric) -> None:
    found = await basis(fabric, Scope(image="demo", tier="standard"))

    assert [rule.policy for rule in found.rules] == [DEFAULT_POLICY]
    assert found.references == ()


async def test_owner_before_image_before_tier(fabric: Fabric) -> None:
    mine = await owner(fabric)
    whose = Scope(owner_id=mine, image="demo", tier="sev")
    for name, scope in (
        ("all", {}),
        ("tier", {"tier": "sev"}),
        ("image", {"image": "demo"}),
        ("both", {"image": "demo", "tier": "sev"}),
        ("owner", {"owner_id": mine}),
        ("whole", {"owner_id": mine, "image": "demo", "tier": "sev"}),
    ):
        await add(fabric, name, **scope)

        assert (await basis(fabric, whose)).policy.id == name

    assert (await basis(fabric, Scope(image="else", tier="sev"))).policy.id == "tier"


async def test_deprecated_versions_follow_the_active_one_until_their_date(
    fabric: Fabric,
) -> None:
    await add(fabric, "prod", State.DEPRECATED, number=1)
    await add(fabric, "prod", State.REVOKED, number=2)
    await add(fabric, "prod", State.ACTIVE, number=3)
    await add(fabric, "prod", State.STAGED, number=4)

    before = await basis(fabric, Scope())
    fabric.clock.advance(3601.0)
    after = await basis(fabric, Scope())

    assert [rule.policy.version for rule in before.rules] == [3, 1]
    assert [rule.until is None for rule in before.rules] == [True, False]
    assert [rule.policy.version for rule in after.rules] == [3]


async def test_every_set_but_staged_ones_is_known_revoked_ones_first(
    fabric: Fabric,
) -> None:
    states = (State.ACTIVE, State.REVOKED, State.STAGED, State.DEPRECATED)
    for number, state in enumerate(states, 1):
        await add(fabric, "set", state, noun=Noun.REFERENCES, number=number)
    await add(fabric, "other", noun=Noun.REFERENCES, image="else")

    found = await basis(fabric, Scope(image="demo"))

    assert [each.state for each in found.references] == [
        State.REVOKED,
        State.ACTIVE,
        State.DEPRECATED,
    ]


async def test_what_falls_off_is_never_a_revoked_set(fabric: Fabric) -> None:
    await add(fabric, "bad", State.REVOKED, noun=Noun.REFERENCES)
    for number in (1, 2, 3):
        await add(fabric, "good", noun=Noun.REFERENCES, number=number)

    async with fabric.database.reading() as conn:
        found = await policies.list_references_for(conn, Scope(), "tpm", limit=2)

    assert [each.state for each in found] == [State.REVOKED, State.ACTIVE]


async def test_two_policies_are_not_active_for_one_scope(fabric: Fabric) -> None:
    await add(fabric, "one", image="demo")
    await add(fabric, "other", image="else")

    with pytest.raises(ConflictError, match="deprecate it first"):
        await add(fabric, "third", image="demo")


async def test_those_concerned_live_run_and_are_ours(fabric: Fabric) -> None:
    running, stopped, gone = await fabric.instances(3)
    now = fabric.clock.now()
    async with fabric.database.writing() as conn:
        await vms.set_power(conn, running, PowerState.RUNNING, now)
        await vms.set_power(conn, stopped, PowerState.STOPPED, now)
        await vms.set_power(conn, gone, PowerState.RUNNING, now, terminated=True)

    async def concerned(runtime: str, **scope: Any) -> list[int]:
        async with fabric.database.reading() as conn:
            found = await policies.list_concerned(
                conn, runtime, Scope(**scope), limit=9
            )
        return list(found)

    assert await concerned(RUNTIME) == [running]
    assert await concerned(RUNTIME, image="demo", tier="standard") == [running]
    assert await concerned(RUNTIME, image="else") == []
    assert await concerned(RUNTIME, owner_id=OwnerId(2**40)) == []
    assert await concerned("there") == []


async def test_an_owner_sees_their_own_and_everybody_s(fabric: Fabric) -> None:
    mine = await owner(fabric)
    shared = await add(fabric, "shared")
    own = await add(fabric, "own", owner_id=mine)

    async def seen(who: OwnerId | None, **only: Any) -> list[int]:
        async with fabric.database.reading() as conn:
            found = await policies.list_versions(
                conn, who, Noun.POLICIES, policies.Filter(**only), after=0, limit=9
            )
        return [each.id for each in found]

    assert await seen(mine) == await seen(None) == [shared.id, own.id]
    assert await seen(OwnerId(mine + 1)) == [shared.id]
    assert await seen(None, name="own") == [own.id]
    assert await seen(None, state=State.STAGED) == []
