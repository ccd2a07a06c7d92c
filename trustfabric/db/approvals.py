"""Approvals of runs: each person's decision, and what it makes of the run."""

from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from trustfabric.db.playbooks import get_playbook
from trustfabric.db.run_writes import End, settle, tell
from trustfabric.db.runs import lock_run
from trustfabric.db.servers import add_user
from trustfabric.db.session import Connection
from trustfabric.domain.approvals import Ruling, after_ruling, check_ruling
from trustfabric.domain.documents import plain
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import OwnerId, RunId
from trustfabric.domain.runs import NOTES_LIMIT, ApprovalState, Run, called_off
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import ConflictError

_APPROVERS_SQL: LiteralString = """
SELECT user_id FROM runtime_vm_remediation_approvals
 WHERE run_id = %(id)s AND decision = 'approved'
"""


async def approvers_of(conn: Connection, run_id: RunId) -> frozenset[OwnerId]:
    """Return who has approved a run."""
    cursor = await conn.execute(_APPROVERS_SQL, {"id": run_id})
    return frozenset(OwnerId(row[0]) for row in await cursor.fetchall())


_RULE_SQL: LiteralString = """
UPDATE runtime_vm_remediation_runs
   SET approval_state = %(state)s, approval_decided_at = %(now)s,
       approval_decided_by = %(by)s, approval_notes = %(notes)s,
       approvals_given = approvals_given + %(given)s,
       version = version + 1, updated_at = %(now)s
 WHERE id = %(id)s
"""

_APPROVAL_SQL: LiteralString = """
INSERT INTO runtime_vm_remediation_approvals
       (run_id, user_id, decision, notes, content_sha256, decided_at)
VALUES (%(id)s, %(user_id)s, %(decision)s, %(notes)s, %(sha256)s, %(now)s)
    ON CONFLICT ON CONSTRAINT approval_per_user DO UPDATE
   SET decision = EXCLUDED.decision, notes = EXCLUDED.notes,
       decided_at = EXCLUDED.decided_at
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecideRun:
    """Write a person's approval or rejection, decided on the locked row."""

    run_id: RunId
    ruling: Ruling
    becomes: ApprovalState
    """What the change of trust that this goes with was made for."""
    now: datetime
    requester_may_approve: bool = False

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        run = await lock_run(conn, self.run_id, owner_id=before.owner_id)
        await self._check(conn, run)
        await self._note(conn, run)
        match self.becomes:
            case ApprovalState.REJECTED:
                ended = called_off(run, FailureReason.CANCELLED, "approval rejected")
                await settle(conn, [End(run, ended, self.now, self.ruling.actor)])
            case _:
                told = f"approved by {self.ruling.actor}"
                if run.approvals_required > 1:
                    given = run.approvals_given + 1
                    told += f" ({given} of {run.approvals_required})"
                await tell(conn, run.id, told, self.now)
        return run.id

    async def _check(self, conn: Connection, run: Run) -> None:
        current = (
            None
            if run.playbook_id is None
            else await get_playbook(conn, None, run.playbook_id)
        )
        check_ruling(
            run,
            self.ruling,
            current,
            approvers=await approvers_of(conn, run.id),
            requester_may_approve=self.requester_may_approve,
        )
        if after_ruling(run, self.ruling) is not self.becomes:
            raise ConflictError(f"run {run.id} has moved on", status=run.status)

    async def _note(self, conn: Connection, run: Run) -> None:
        # Who has approved may still think better of it, and reject.
        notes = self.ruling.notes
        facts = {
            "id": run.id,
            "notes": plain(notes, NOTES_LIMIT) if notes else None,
            "now": self.now,
        }
        approve = self.ruling.approve
        by = {"by": self.ruling.actor, "given": int(approve)}
        await conn.execute(_RULE_SQL, {**facts, **by, "state": self.becomes})
        await add_user(conn, self.ruling.by)
        decision = "approved" if approve else "rejected"
        user = {"user_id": self.ruling.by, "sha256": run.content_sha256}
        await conn.execute(_APPROVAL_SQL, {**facts, **user, "decision": decision})
