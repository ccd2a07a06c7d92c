"""The posture table of accelerators: what is known of each instance's hardware."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.session import Connection
from trustfabric.domain.accelerators import PASSING_POSTURES, Accelerator
from trustfabric.domain.ids import AttestationId, InstanceId
from trustfabric.domain.vms import ACTIVE

# Of a posture `p` and its instance `i`: one truth for the gate, the views, the streams.
IS_FRESH: LiteralString = """
    coalesce(p.fresh_until > %(now)s, false)
        AND p.boot_id IS NOT DISTINCT FROM i.boot_id
"""
IS_RUNNING: LiteralString = "coalesce(i.power_state = ANY (%(active)s), false)"

_LIST_SQL: LiteralString = f"""
SELECT p.runtime_vm_instance_id AS instance_id, p.accelerator_id, p.accelerator_type,
       p.posture, p.policy_feedback, p.metadata, p.asked_at, p.attestation_id,
       p.fresh_until,
       {IS_FRESH} AS fresh, {IS_RUNNING} AS running
  FROM runtime_vm_accelerator_posture p
  JOIN runtime_vm_instances i ON i.id = p.runtime_vm_instance_id
 WHERE p.runtime_vm_instance_id = ANY (%(ids)s)
 ORDER BY p.accelerator_id
"""


async def list_accelerators(
    conn: Connection, ids: Iterable[InstanceId], now: datetime
) -> Mapping[InstanceId, Sequence[Accelerator]]:
    """Return the accelerators of each instance that has any, by their id."""
    found: defaultdict[InstanceId, list[Accelerator]] = defaultdict(list)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LIST_SQL, {"ids": list(ids), "now": now, "active": sorted(ACTIVE)}
        )
        for row in await cursor.fetchall():
            found[InstanceId(row.pop("instance_id"))].append(Accelerator(**row))
    return found


_WORSEN_SQL: LiteralString = """
INSERT INTO runtime_vm_accelerator_posture AS p
       (runtime_vm_instance_id, accelerator_id, accelerator_type, posture,
        policy_feedback, metadata, collected_at)
VALUES (%(instance_id)s, %(accelerator_id)s, %(accelerator_type)s, %(posture)s,
        %(policy_feedback)s, %(metadata)s, %(now)s)
ON CONFLICT ON CONSTRAINT accelerator_per_instance DO UPDATE
   SET accelerator_type = excluded.accelerator_type, posture = excluded.posture,
       policy_feedback = excluded.policy_feedback, metadata = excluded.metadata,
       collected_at = excluded.collected_at
 WHERE NOT excluded.posture = ANY(%(passing)s)
    OR (p.posture = ANY(%(passing)s) AND p.asked_at IS NULL)
"""


async def worsen_accelerators(
    conn: Connection,
    instance_id: InstanceId,
    accelerators: Sequence[Accelerator],
    now: datetime,
) -> None:
    """Enter what came with an enqueue: a blocking posture is never made to pass.

    Nor does a better word than blocks replace one that evidence made.
    """
    if not accelerators:
        return
    async with conn.cursor() as cursor:
        await cursor.executemany(
            _WORSEN_SQL,
            [
                {
                    "instance_id": instance_id,
                    "accelerator_id": one.accelerator_id,
                    "accelerator_type": one.accelerator_type,
                    "posture": one.posture,
                    "policy_feedback": list(one.policy_feedback),
                    "metadata": Jsonb(dict(one.metadata)),
                    "now": now,
                    "passing": sorted(PASSING_POSTURES),
                }
                for one in accelerators
            ],
        )


# --- by their own evidence ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """One accelerator of one instance."""

    instance_id: InstanceId
    accelerator_id: str


_ASKED_SQL: LiteralString = """
INSERT INTO runtime_vm_accelerator_posture AS p
       (runtime_vm_instance_id, accelerator_id, accelerator_type, posture,
        collected_at, asked_at)
VALUES (%(instance_id)s, %(accelerator_id)s, %(kind)s, 'unknown', %(now)s, %(now)s)
ON CONFLICT ON CONSTRAINT accelerator_per_instance DO UPDATE
   SET asked_at = coalesce(p.asked_at, excluded.asked_at)
"""


async def note_asked(conn: Connection, place: Place, kind: str, now: datetime) -> None:
    """Remember that it is asked for evidence: unknown, where it never gave any."""
    await conn.execute(_ASKED_SQL, {**_at(place), "kind": kind, "now": now})


_DEVICE_SQL: LiteralString = """
SELECT device FROM runtime_vm_accelerator_posture
 WHERE runtime_vm_instance_id = %(instance_id)s
   AND accelerator_id = %(accelerator_id)s
"""


async def get_device(conn: Connection, place: Place) -> str | None:
    """Return which device an accelerator was found to be; None: none yet."""
    cursor = await conn.execute(_DEVICE_SQL, _at(place))
    row = await cursor.fetchone()
    return None if row is None else row[0]


# A device goes with the host's PCI address from VM to VM. Two that run can't both have
# it: then one of them relays what the other shows.
_ELSEWHERE_SQL: LiteralString = """
SELECT EXISTS (
    SELECT 1 FROM runtime_vm_accelerator_posture p
      JOIN runtime_vm_instances i ON i.id = p.runtime_vm_instance_id
     WHERE p.device = %(device)s AND p.fresh_until > %(now)s
       AND p.posture = ANY(%(passing)s)
       AND i.terminated_at IS NULL AND i.power_state = 'running'
       AND p.boot_id IS NOT DISTINCT FROM i.boot_id
       AND (p.runtime_vm_instance_id, p.accelerator_id)
           <> (%(instance_id)s, %(accelerator_id)s))
"""


async def stands_elsewhere(
    conn: Connection, device: str, place: Place, now: datetime
) -> bool:
    """Tell whether a device is, by fresh evidence, another accelerator that runs."""
    cursor = await conn.execute(
        _ELSEWHERE_SQL,
        {
            **_at(place),
            "device": device,
            "now": now,
            "passing": sorted(PASSING_POSTURES),
        },
    )
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


_TURN_SQL: LiteralString = """
SELECT pg_advisory_xact_lock(hashtextextended(%(device)s, 11))
"""


async def take_turn_of(conn: Connection, device: str) -> None:
    """Let nobody else record this device until this transaction ends."""
    await conn.execute(_TURN_SQL, {"device": device})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verdict makes of a posture."""

    attestation_id: AttestationId
    kind: str
    posture: str | None
    """None: what was known stands; `unknown` where nothing was."""
    feedback: Sequence[str]
    fresh_until: datetime | None
    device: str | None
    """Which device it is, where it was accepted: the first one stays."""
    now: datetime


_PUT_SQL: LiteralString = """
INSERT INTO runtime_vm_accelerator_posture AS p
       (runtime_vm_instance_id, accelerator_id, accelerator_type, posture,
        policy_feedback, collected_at, attestation_id, boot_id, fresh_until, device)
SELECT i.id, %(accelerator_id)s, %(kind)s, coalesce(%(posture)s::text, 'unknown'),
       %(feedback)s, %(now)s, %(attestation_id)s, i.boot_id, %(fresh_until)s,
       %(device)s
  FROM runtime_vm_instances i WHERE i.id = %(instance_id)s
ON CONFLICT ON CONSTRAINT accelerator_per_instance DO UPDATE
   SET accelerator_type = excluded.accelerator_type,
       collected_at = excluded.collected_at,
       posture = coalesce(%(posture)s::text, p.posture),
       policy_feedback = CASE
           WHEN %(posture)s::text IS NULL AND p.posture <> 'unknown'
           THEN p.policy_feedback ELSE excluded.policy_feedback END,
       attestation_id = CASE
           WHEN %(posture)s::text IS NULL AND p.posture <> 'unknown'
           THEN coalesce(p.attestation_id, excluded.attestation_id)
           ELSE excluded.attestation_id END,
       boot_id = CASE WHEN %(posture)s::text IS NULL
           THEN p.boot_id ELSE excluded.boot_id END,
       fresh_until = CASE WHEN %(posture)s::text IS NULL
           THEN p.fresh_until ELSE excluded.fresh_until END,
       device = coalesce(p.device, excluded.device)
 WHERE p.posture = 'unknown' OR p.attestation_id IS NULL
    OR p.attestation_id < excluded.attestation_id
    OR NOT coalesce(%(posture)s::text = ANY(%(passing)s), false)
"""


async def put_posture(conn: Connection, place: Place, verdict: Verdict) -> None:
    """Enter what a recorded verdict says of an accelerator, in its present boot.

    Nothing good where the posture rests on a challenge that was issued later.
    """
    await conn.execute(
        _PUT_SQL,
        {
            **_at(place),
            "attestation_id": verdict.attestation_id,
            "kind": verdict.kind,
            "posture": verdict.posture,
            "feedback": list(verdict.feedback),
            "fresh_until": verdict.fresh_until,
            "device": verdict.device,
            "now": verdict.now,
            "passing": sorted(PASSING_POSTURES),
        },
    )


def _at(place: Place) -> dict[str, object]:
    return {
        "instance_id": place.instance_id,
        "accelerator_id": place.accelerator_id,
    }
