"""What is remembered of attesters between two challenges: statements and companion."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from trustfabric.db.session import Connection
from trustfabric.domain.attestation.launch import LaunchDigest
from trustfabric.domain.attestation.memory import (
    ASKED_AFRESH,
    Memory,
    Patience,
    fresh_clock,
    is_silence,
)
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.evidence.tpm2 import TpmClock
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import ConflictError

_GET_SQL: LiteralString = """
SELECT c.ak_sha256, c.boot_id, c.reset_count, c.restart_count, c.clock_ms,
       s.misses, l.measurement, l.boots_kernel,
       l.guest_policy
  FROM runtime_vm_instances i
  LEFT JOIN attestation_clocks c ON c.runtime_vm_instance_id = i.id
  LEFT JOIN attestation_silences s ON s.runtime_vm_instance_id = i.id
  LEFT JOIN attestation_launches l ON l.runtime_vm_instance_id = i.id
 WHERE i.id = %(id)s
"""


async def get_memory(conn: Connection, instance_id: InstanceId) -> Memory:
    """Return what earlier challenges of an instance left behind."""
    cursor = await conn.execute(_GET_SQL, {"id": instance_id})
    row = await cursor.fetchone()
    if row is None:
        return Memory()
    key_id, boot_id, resets, restarts, clock_ms, misses, *launch = row
    clock = None
    if key_id is not None:
        clock = TpmClock(
            reset_count=resets,
            restart_count=restarts,
            clock=int(clock_ms),
            key_id=key_id,
        )
    return Memory(
        clock=clock,
        boot_id=None if boot_id is None else str(boot_id),
        misses=misses or 0,
        launch=_launch(launch),
    )


def _launch(columns: Sequence[Any]) -> LaunchDigest | None:
    measurement, boots_kernel, guest_policy = columns
    if measurement is None:
        return None
    return LaunchDigest(
        measurement=measurement,
        boots_kernel=boots_kernel,
        guest_policy=int(guest_policy),
    )


_KEEP_CLOCK_SQL: LiteralString = """
INSERT INTO attestation_clocks AS c
       (runtime_vm_instance_id, ak_sha256, boot_id, reset_count, restart_count,
        clock_ms)
VALUES (%(id)s, %(key_id)s, %(boot_id)s, %(resets)s, %(restarts)s, %(clock)s)
ON CONFLICT (runtime_vm_instance_id) DO UPDATE
   SET ak_sha256 = excluded.ak_sha256, boot_id = excluded.boot_id,
       reset_count = excluded.reset_count, restart_count = excluded.restart_count,
       clock_ms = excluded.clock_ms
"""

_FALL_SILENT_SQL: LiteralString = """
INSERT INTO attestation_silences (runtime_vm_instance_id, misses, ask_after)
VALUES (%(id)s, %(misses)s, %(ask_after)s)
ON CONFLICT (runtime_vm_instance_id) DO UPDATE
   SET misses = excluded.misses, ask_after = excluded.ask_after
"""

_ANSWERED_SQL: LiteralString = """
DELETE FROM attestation_silences WHERE runtime_vm_instance_id = %(id)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepClock:
    """Companion: the newest clock that its TPM showed, and that it answered."""

    clock: TpmClock | None
    boot_id: UUID | None

    async def write(self, conn: Connection, before: Snapshot) -> None:
        await conn.execute(_ANSWERED_SQL, {"id": before.instance_id})
        if self.clock is not None:
            await conn.execute(
                _KEEP_CLOCK_SQL,
                {
                    "id": before.instance_id,
                    "key_id": self.clock.key_id,
                    "boot_id": self.boot_id,
                    "resets": self.clock.reset_count,
                    "restarts": self.clock.restart_count,
                    "clock": self.clock.clock,
                },
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSilence:
    """Companion: nothing answered, so many times in a row; when to ask again."""

    misses: int
    purpose: str
    patience: Patience
    now: datetime
    jitter: float

    async def write(self, conn: Connection, before: Snapshot) -> None:
        ask_after = self.patience.ask_after(
            self.misses, self.purpose, self.now, before.freshness_deadline, self.jitter
        )
        await conn.execute(
            _FALL_SILENT_SQL,
            {
                "id": before.instance_id,
                "misses": self.misses,
                "ask_after": ask_after,
            },
        )


def keep(
    memory: Memory,
    appraisal: Appraisal,
    boot_id: UUID | None,
    *,
    purpose: str,
    patience: Patience,
    jitter: float,
) -> KeepClock | KeepSilence:
    """Return what an appraisal leaves behind for the next challenge."""
    if not is_silence(appraisal):
        return KeepClock(clock=fresh_clock(appraisal), boot_id=boot_id)
    return KeepSilence(
        misses=1 + (0 if purpose in ASKED_AFRESH else memory.misses),
        purpose=purpose,
        patience=patience,
        now=appraisal.verified_at,
        jitter=jitter,
    )


_NEW_BOOT_SQL: LiteralString = """
UPDATE runtime_vm_instances SET boot_id = %(boot_id)s, updated_at = %(now)s
 WHERE id = %(id)s AND terminated_at IS NULL AND boot_id IS NOT DISTINCT FROM %(was)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteReboot:
    """Companion: the guest booted again and only its TPM told us."""

    was: UUID | None
    boot_id: UUID
    now: datetime

    async def write(self, conn: Connection, before: Snapshot) -> None:
        cursor = await conn.execute(
            _NEW_BOOT_SQL,
            {
                "id": before.instance_id,
                "boot_id": self.boot_id,
                "was": self.was,
                "now": self.now,
            },
        )
        if cursor.rowcount == 0:
            raise ConflictError(
                f"instance {before.instance_id} booted again, or is terminated"
            )
