"""The registry actor: one writer, in groups, answered only after the commit."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from tests.builders import OWNER, insert_run
from tests.fix_fabric import (
    Fabric,
    a_new_instance,
    add_server,
    count,
    held,
    queued,
    until,
    until_waiting,
    waiting,
)
from trustfabric.actors.trust import Applied, OpenInstance
from trustfabric.db import trust_events
from trustfabric.db.faults import ContentionError
from trustfabric.db.session import Connection, Database
from trustfabric.domain.events import Position
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.trust import (
    AttestationStatus,
    Lifecycle,
    Signal,
    Snapshot,
    Tag,
)
from trustfabric.domain.wishes import Wish
from trustfabric.errors import (
    ConflictError,
    DuplicateKeyError,
    IllegalTransitionError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    VersionConflictError,
    VersionRequiredError,
)
from trustfabric.supervision import ActorKilledError

BATCHES_SQL = "SELECT count(DISTINCT xid::text) FROM runtime_vm_trust_history"


@dataclass(frozen=True, slots=True)
class Note:
    """Companion: writes a line into the instance's log, then perhaps refuses."""

    text: str
    refuses: bool = False

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        await conn.execute(
            """
            INSERT INTO runtime_vm_events (runtime_vm_instance_id, event_type)
            VALUES (%s, %s)
            """,
            [before.instance_id, self.text],
        )
        if self.refuses:
            raise ConflictError("no")
        return 17


def notes(database: Database) -> Any:
    return count(database, "SELECT count(*) FROM runtime_vm_events")


async def together(fabric: Fabric, *changes: Any) -> list[Any]:
    """Have changes queue behind one in flight, so that they are one batch."""
    blocker = await fabric.instance()
    async with held(fabric.database, blocker):
        first = asyncio.ensure_future(fabric.change(blocker, Signal.ANNOTATED))
        await until_waiting(fabric)
        rest = [asyncio.ensure_future(one) for one in changes]
        await queued(fabric, len(rest))
    await first
    return await asyncio.gather(*rest, return_exceptions=True)


# --- a change ----------------------------------------------------------------------


async def test_an_instance_begins_suspect_with_version_one(fabric: Fabric) -> None:
    instance = await fabric.instance()

    row = await fabric.posture(instance)
    (event,) = await fabric.history(instance)

    assert (row.lifecycle, row.attestation_status) == (
        Lifecycle.SUSPECT,
        AttestationStatus.PENDING,
    )
    assert (row.version, row.remediation_state) == (1, Tag.NONE)
    assert (event.version, event.previous_lifecycle, event.actor) == (1, None, "test")


async def test_an_instance_and_its_row_are_made_together_or_not_at_all(
    fabric: Fabric,
) -> None:
    first = await fabric.instance()
    server = (await fabric.posture(first)).server_id

    with pytest.raises(DuplicateKeyError):
        await fabric.instance_of(server)
    with pytest.raises(NotFoundError):
        await fabric.instance_of(ServerId(999), "other")

    assert (
        await count(fabric.database, "SELECT count(*) FROM runtime_vm_instances") == 1
    )


async def test_a_change_is_one_version_and_one_row_of_history(fabric: Fabric) -> None:
    instance = await fabric.instance()

    row = await fabric.change(
        instance,
        Signal.TRUSTED_VERDICT,
        reason="all checks passed",
        provenance_ref="attestation:tpm:1",
        provenance={"kind": "tpm"},
        metadata={"purpose": "boot"},
    )

    assert row == await fabric.posture(instance)
    event = (await fabric.history(instance))[-1]
    assert event.version == row.version == 2
    assert event.previous_lifecycle is Lifecycle.SUSPECT
    assert event.lifecycle is Lifecycle.RESTORED
    assert event.previous_status is AttestationStatus.PENDING
    assert event.status is AttestationStatus.TRUSTED
    assert event.freshness_deadline == row.freshness_deadline
    assert event.reason == "all checks passed"
    assert event.provenance == {"kind": "tpm"}
    assert event.metadata == {"purpose": "boot"}
    assert event.triggered_at == fabric.clock.now()


async def test_what_changes_nothing_is_not_written(fabric: Fabric) -> None:
    instance = await fabric.instance()

    applied = await fabric.apply(instance, fabric.a_change(Signal.CRASHED))

    assert applied.before is applied.after
    assert len(await fabric.history(instance)) == 1


async def test_a_reason_is_capped(fabric: Fabric) -> None:
    instance = await fabric.instance()

    await fabric.change(instance, Signal.ANNOTATED, reason="ü" * 9000)

    assert (await fabric.history(instance))[-1].reason == "ü" * 500


async def test_history_cannot_be_rewritten(fabric: Fabric) -> None:
    await fabric.instance()

    with pytest.raises(Exception, match="append-only"):
        async with fabric.database.writing() as conn:
            await conn.execute("UPDATE runtime_vm_trust_history SET actor = 'me'")


# --- versions ----------------------------------------------------------------------


async def test_of_fifty_with_one_version_one_wins(fabric: Fabric) -> None:
    instance = await fabric.instance()

    outcomes = await asyncio.gather(
        *(
            fabric.apply(
                instance,
                fabric.a_change(Signal.ANNOTATED, reason=f"writer {number}"),
                expected_version=1,
            )
            for number in range(50)
        ),
        return_exceptions=True,
    )

    assert Counter(map(type, outcomes)) == {Applied: 1, VersionConflictError: 49}
    assert (await fabric.posture(instance)).version == 2
    assert len(await fabric.history(instance)) == 2


async def test_a_conflict_names_both_versions(fabric: Fabric) -> None:
    instance = await fabric.instance()
    change = fabric.a_change(Signal.ANNOTATED)

    with pytest.raises(VersionConflictError) as conflict:
        await fabric.apply(instance, change, expected_version=4)
    with pytest.raises(VersionRequiredError) as required:
        await fabric.apply(instance, change, requires_version=True)

    assert conflict.value.facts == {"expected_version": 4, "current_version": 1}
    assert required.value.facts == {"expected_version": None, "current_version": 1}
    assert len(await fabric.history(instance)) == 1


@pytest.mark.parametrize("expected", [0, -1, 2**70])
async def test_an_impossible_version_is_a_conflict(
    fabric: Fabric, expected: int
) -> None:
    instance = await fabric.instance()

    with pytest.raises(VersionConflictError):
        await fabric.apply(
            instance, fabric.a_change(Signal.ANNOTATED), expected_version=expected
        )


async def test_others_instances_are_not_there(fabric: Fabric) -> None:
    instance = await fabric.instance()
    change = fabric.a_change(Signal.ANNOTATED)

    for whose, which in ((OWNER + 1, instance), (OWNER, InstanceId(999))):
        with pytest.raises(NotFoundError):
            await fabric.apply(which, change, owner_id=OwnerId(whose))

    await fabric.apply(instance, change, owner_id=OwnerId(OWNER))


async def test_a_wish_goes_the_same_way(fabric: Fabric) -> None:
    instance = await fabric.instance()

    def wish(lifecycle: Lifecycle, status: AttestationStatus) -> Wish:
        return Wish(lifecycle=lifecycle, status=status, actor="user:7", is_admin=False)

    pending = AttestationStatus.PENDING
    await fabric.apply(instance, wish(Lifecycle.QUARANTINED, pending))
    with pytest.raises(IllegalTransitionError):
        await fabric.apply(
            instance, wish(Lifecycle.RESTORED, AttestationStatus.TRUSTED)
        )

    event = (await fabric.history(instance))[-1]
    assert (event.lifecycle, event.actor) == (Lifecycle.QUARANTINED, "user:7")


# --- groups ------------------------------------------------------------------------


async def test_what_queues_is_one_transaction(fabric: Fabric) -> None:
    instances = await fabric.instances(20)
    before = await count(fabric.database, BATCHES_SQL)

    rows = await together(
        fabric, *(fabric.change(each, Signal.UNTRUSTED_VERDICT) for each in instances)
    )

    assert [row.lifecycle for row in rows] == [Lifecycle.QUARANTINED] * 20
    # One for the blocker's creation, one for its change, one for all the others.
    assert await count(fabric.database, BATCHES_SQL) == before + 3


async def test_two_changes_of_one_instance_in_a_batch_are_both_made_in_order(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()

    rows = await together(
        fabric,
        fabric.change(instance, Signal.UNTRUSTED_VERDICT),
        fabric.change(instance, Signal.RUN_STAGED),
        fabric.change(instance, Signal.RUN_STARTED),
    )

    assert [row.version for row in rows] == [2, 3, 4]
    assert [event.version for event in await fabric.history(instance)] == [1, 2, 3, 4]
    assert rows[-1].lifecycle is Lifecycle.REMEDIATING


async def test_a_refused_change_refuses_nobody_else(fabric: Fabric) -> None:
    one, two, three = await fabric.instances(3)

    outcomes = await together(
        fabric,
        fabric.change(one, Signal.UNTRUSTED_VERDICT),
        fabric.change(two, Signal.RELEASED),
        fabric.change(InstanceId(999), Signal.ANNOTATED),
        fabric.change(three, Signal.TRUSTED_VERDICT),
    )

    assert isinstance(outcomes[1], IllegalTransitionError)
    assert isinstance(outcomes[2], NotFoundError)
    assert outcomes[0].lifecycle is Lifecycle.QUARANTINED
    assert outcomes[3].lifecycle is Lifecycle.RESTORED


POISON = [
    {"reason": "nul \0 inside"},
    {"metadata": {"text": "nul \0 inside"}},
    {"provenance": {"number": 2**80}},
    {"provenance_ref": "\0"},
    {"actor": "\ud800"},
]


@pytest.mark.parametrize("poison", POISON)
async def test_what_cannot_be_stored_is_refused_alone(
    fabric: Fabric, poison: dict[str, Any]
) -> None:
    one, two, three = await fabric.instances(3)

    outcomes = await together(
        fabric,
        fabric.change(one, Signal.UNTRUSTED_VERDICT),
        fabric.change(two, Signal.ANNOTATED, **poison),
        fabric.change(three, Signal.TRUSTED_VERDICT),
    )

    assert isinstance(outcomes[1], InvalidError)
    assert outcomes[0].lifecycle is Lifecycle.QUARANTINED
    assert outcomes[2].lifecycle is Lifecycle.RESTORED
    assert (await fabric.posture(two)).version == 1


async def test_nobody_is_answered_before_the_commit(fabric: Fabric) -> None:
    instance = await fabric.instance()

    async with held(fabric.database, instance):
        asked = asyncio.ensure_future(fabric.change(instance, Signal.ANNOTATED))
        await until_waiting(fabric)
        assert not asked.done()

    assert (await asked).version == 2


# --- companions --------------------------------------------------------------------


async def test_a_companion_is_one_commit_with_its_change(fabric: Fabric) -> None:
    instance = await fabric.instance()

    applied = await fabric.apply(
        instance,
        fabric.a_change(Signal.ANNOTATED),
        companions=(Note("first"), Note("second")),
    )

    assert applied.written == (17, 17)
    assert await notes(fabric.database) == 2


async def test_a_refused_companion_takes_only_its_own_change_with_it(
    fabric: Fabric,
) -> None:
    one, two, three = await fabric.instances(3)

    def annotate(instance: InstanceId, *companions: Note) -> Any:
        change = fabric.a_change(Signal.ANNOTATED)
        return fabric.apply(instance, change, companions=companions)

    outcomes = await together(
        fabric,
        annotate(one, Note("kept")),
        annotate(two, Note("undone"), Note("refused", refuses=True)),
        annotate(three, Note("kept")),
    )

    assert [type(outcome) for outcome in outcomes] == [Applied, ConflictError, Applied]
    assert await notes(fabric.database) == 2
    versions = [(await fabric.posture(each)).version for each in (one, two, three)]
    assert versions == [2, 1, 2]


async def test_a_companion_with_poison_is_refused_alone(fabric: Fabric) -> None:
    one, two = await fabric.instances(2)

    outcomes = await together(
        fabric,
        fabric.apply(
            one, fabric.a_change(Signal.ANNOTATED), companions=(Note("nul \0"),)
        ),
        fabric.change(two, Signal.ANNOTATED),
    )

    assert isinstance(outcomes[0], InvalidError)
    assert outcomes[1].version == 2


async def test_a_companion_of_a_refused_change_is_not_written(fabric: Fabric) -> None:
    instance = await fabric.instance()

    with pytest.raises(IllegalTransitionError):
        await fabric.apply(
            instance, fabric.a_change(Signal.RELEASED), companions=(Note("never"),)
        )

    assert await notes(fabric.database) == 0


@pytest.mark.slow
async def test_who_is_in_the_way_of_one_is_in_nobody_elses(fabric: Fabric) -> None:
    one, two, three = await fabric.instances(3)

    async with fabric.database.writing() as conn:
        await conn.execute(
            """
            SELECT FROM runtime_vm_trust_registry
             WHERE runtime_vm_instance_id = %s FOR UPDATE
            """,
            [two],
        )
        await conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        asked = asyncio.gather(
            *(fabric.change(each, Signal.ANNOTATED) for each in (one, two, three)),
            return_exceptions=True,
        )

        async def refused() -> bool | None:
            # Only tests' clocks wait for us to let time pass between two tries.
            fabric.clock.advance(0.2)
            return asked.done() or None

        await until(refused, "all answers")

    outcomes = await asked
    assert [isinstance(each, Snapshot) for each in outcomes] == [True, False, True]
    assert isinstance(outcomes[1], ContentionError)
    assert (await fabric.change(two, Signal.ANNOTATED)).version == 2


# --- several runtimes --------------------------------------------------------------


async def test_two_registries_racing_with_one_version_have_one_winner(
    fabric: Fabric, second: Fabric
) -> None:
    instances = await fabric.instances(5)

    outcomes = await asyncio.gather(
        *(
            runtime.apply(
                instance,
                runtime.a_change(Signal.ANNOTATED, reason=runtime.name),
                expected_version=1,
            )
            for instance in instances
            for runtime in (fabric, second)
        ),
        return_exceptions=True,
    )

    assert Counter(map(type, outcomes)) == {Applied: 5, VersionConflictError: 5}
    for instance in instances:
        assert len(await fabric.history(instance)) == 2


async def test_changes_that_state_no_version_are_all_made(
    fabric: Fabric, second: Fabric
) -> None:
    instances = await fabric.instances(8)

    await asyncio.gather(
        *(
            runtime.change(instance, Signal.ANNOTATED)
            for _ in range(10)
            for instance in instances
            for runtime in (fabric, second)
        )
    )

    for instance in instances:
        versions = [event.version for event in await fabric.history(instance)]
        assert versions == list(range(1, 22))


async def test_who_waited_for_another_runtime_decides_on_what_that_one_wrote(
    fabric: Fabric, second: Fabric
) -> None:
    """Not only on the row: the run that came with it counts as well."""
    instance = await fabric.instance()
    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)

    async with held(second.database, instance) as conn:
        verdict = asyncio.ensure_future(fabric.change(instance, Signal.TRUSTED_VERDICT))
        await until_waiting(fabric)
        # The other runtime stages a run meanwhile, as its registry would.
        await insert_run(conn, instance)
        await conn.execute(
            """
            UPDATE runtime_vm_trust_registry
               SET lifecycle_state = 'remediating', version = version + 1
            """
        )

    assert (await verdict).lifecycle is Lifecycle.REMEDIATING


async def test_versions_of_two_runtimes_are_in_the_order_of_the_streams(
    fabric: Fabric, second: Fabric
) -> None:
    """Whose transaction began first must not write a later version than the other."""
    instances = await fabric.instances(3)
    _, two, three = instances
    blocker = await fabric.instance()
    changes = []

    async with fabric.database.writing() as conn:
        await conn.execute(
            """
            SELECT FROM runtime_vm_trust_registry
             WHERE runtime_vm_instance_id = %s FOR UPDATE
            """,
            [two],
        )
        async with held(second.database, blocker):
            changes.append(
                asyncio.ensure_future(fabric.change(blocker, Signal.ANNOTATED))
            )
            await until_waiting(fabric)
            changes += [
                asyncio.ensure_future(fabric.change(each, Signal.ANNOTATED))
                for each in instances
            ]
            await queued(fabric, 3)
        await changes[0]
        await until_waiting(fabric)
        other = asyncio.ensure_future(second.change(three, Signal.ANNOTATED))

        async def begun() -> bool | None:
            return other.done() or await waiting(fabric) == 2 or None

        await until(begun, "the other runtime")
    await asyncio.gather(*changes, other)

    async def told() -> list[int] | None:
        # Whoever writes to this cluster, other tests too, holds the horizon back.
        async with fabric.database.reading() as conn:
            events = await trust_events.events_after(conn, Position.FIRST, limit=100)
        versions = [each.version for each in events if each.instance_id == three]
        return versions if len(versions) == 3 else None

    assert await until(told, "the events") == [1, 2, 3]


# --- faults ------------------------------------------------------------------------


async def test_killed_in_mid_change_it_tells_all_that_the_outcome_is_unknown(
    fabric: Fabric,
) -> None:
    instances = await fabric.instances(3)

    async with held(fabric.database, instances[0]):
        asked = [
            asyncio.ensure_future(fabric.change(each, Signal.ANNOTATED))
            for each in instances
        ]
        await until_waiting(fabric)
        await fabric.runtime.kill("fabric/trust")
        outcomes = await asyncio.gather(asked[0], return_exceptions=True)

    assert isinstance(outcomes[0], ActorKilledError)
    await asyncio.gather(*asked, return_exceptions=True)
    await fabric.change(instances[0], Signal.ANNOTATED)
    for instance in instances:
        history = await fabric.history(instance)
        assert len(history) == (await fabric.posture(instance)).version


async def test_after_a_lost_connection_it_goes_on(fabric: Fabric) -> None:
    instance = await fabric.instance()

    async with held(fabric.database, instance):
        asked = asyncio.ensure_future(fabric.change(instance, Signal.ANNOTATED))
        await until_waiting(fabric)
        async with fabric.database.reading() as conn:
            await conn.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'
                """
            )
        with pytest.raises(UnavailableError):
            await asked

    row = await fabric.change(instance, Signal.ANNOTATED)
    assert row.version == 2
    assert len(await fabric.history(instance)) == 2


async def test_a_connection_lost_at_the_commit_is_never_a_change_made_twice(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    async with fabric.database.writing() as conn:
        await conn.execute(
            """
            CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.transition_reason = 'die' THEN
                    PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(5);
                END IF;
                RETURN NULL;
            END $$
            """
        )
        await conn.execute(
            """
            CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON runtime_vm_trust_history
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()
            """
        )

    with pytest.raises(UnavailableError) as lost:
        await fabric.change(instance, Signal.ANNOTATED, reason="die")
    row = await fabric.change(instance, Signal.ANNOTATED, reason="live")

    assert lost.value.facts == {"outcome": "unknown"}
    assert row.version == 2
    reasons = [event.reason for event in await fabric.history(instance)]
    assert reasons == ["provisioned", "live"]


async def test_acknowledged_changes_survive_whatever_kills_the_registry(
    fabric: Fabric,
) -> None:
    instances = await fabric.instances(10)
    acknowledged: Counter[InstanceId] = Counter()
    over = asyncio.Event()

    async def write(instance: InstanceId) -> None:
        while not over.is_set():
            try:
                await fabric.change(instance, Signal.ANNOTATED)
            except ActorKilledError:
                continue
            acknowledged[instance] += 1

    writers = [asyncio.ensure_future(write(each)) for each in instances]
    for deaths in range(1, 6):
        goal = 20 * deaths

        async def enough(goal: int = goal) -> bool | None:
            return acknowledged.total() >= goal or None

        await until(enough, "changes between two deaths")
        await fabric.kill("fabric/trust")
    over.set()
    await asyncio.gather(*writers)

    for instance in instances:
        row = await fabric.posture(instance)
        versions = [event.version for event in await fabric.history(instance)]
        assert versions == list(range(1, row.version + 1))
        # Each death may hide one change that was made; none that was told is lost.
        assert acknowledged[instance] <= row.version - 1 <= acknowledged[instance] + 5


async def test_an_order_to_open_does_not_wait_behind_itself(fabric: Fabric) -> None:
    server = await add_server(fabric.database)

    made = await asyncio.gather(
        *(
            fabric.trust.ask(
                OpenInstance(
                    insert=a_new_instance(server.id, f"vm-{number}"), actor="test"
                ),
                within_s=20,
            )
            for number in range(10)
        )
    )

    assert len(set(made)) == 10
