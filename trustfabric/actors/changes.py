"""Changes of trust, and the decisions on a round of them: at most one an instance."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from trustfabric.db import trust
from trustfabric.db.session import Connection, savepoint
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.trust import Change, Snapshot, advance
from trustfabric.domain.wishes import Wish, order
from trustfabric.errors import (
    FabricError,
    NotFoundError,
    VersionConflictError,
    VersionRequiredError,
)
from trustfabric.supervision import Request

if TYPE_CHECKING:
    from trustfabric.actors.trust import TrustRegistry  # noqa: F401  named in a string

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A committed change; `before` and `after` are the same where nothing moved."""

    before: Snapshot
    after: Snapshot
    written: tuple[int | None, ...] = ()
    """What each companion returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyChange(Request["TrustRegistry", Applied]):
    """Change one instance's trust, with whatever must be one commit with it."""

    instance_id: InstanceId
    change: Change | Wish
    owner_id: OwnerId | None = None
    """Narrow to this owner's instances; None: the caller may see all."""
    expected_version: int | None = None
    requires_version: bool = False
    """Refuse when no expected_version is given: people must say what they saw."""
    companions: tuple[trust.Companion, ...] = ()


Outcome = Applied | FabricError


@dataclass(slots=True)
class Round:
    """The decisions of one transaction; at most one change for each instance."""

    now: datetime
    outcomes: list[Outcome | None] = field(default_factory=list)
    moves: list[trust.Transition] = field(default_factory=list)
    _touched: dict[InstanceId, int] = field(default_factory=dict)
    """Whose outcome, and where it is."""

    async def take(
        self,
        conn: Connection | None,
        one: ApplyChange,
        rows: trust.Rows,
    ) -> None:
        """Decide one more, unless what was read of its instance is no longer true."""
        if one.instance_id in self._touched:
            self.outcomes.append(None)
            return
        try:
            applied, change = await _decide(conn, one, rows, self.now)
        except FabricError as error:
            self.outcomes.append(error)
            return
        moved = applied.after is not applied.before
        if moved:
            self.moves.append(trust.Transition(applied.before, applied.after, change))
        if moved or one.companions:
            self._touched[one.instance_id] = len(self.outcomes)
        self.outcomes.append(applied)

    def put_off(self, missed: set[InstanceId]) -> None:
        """Leave to the next round what could not be written."""
        if missed:
            self.moves = [m for m in self.moves if m.after.instance_id not in missed]
        for instance_id in missed:
            self.outcomes[self._touched[instance_id]] = None

    def tell(self) -> None:
        """Log what is news; trust confirmed once more is only in the history."""
        for move in self.moves:
            before, after = move.before, move.after
            if (before.lifecycle, before.attestation_status) != (
                after.lifecycle,
                after.attestation_status,
            ):
                log.info(
                    "trust.changed",
                    instance_id=after.instance_id,
                    signal=move.change.signal,
                    lifecycle=after.lifecycle,
                    status=after.attestation_status,
                    version=after.version,
                )


async def _decide(
    conn: Connection | None,
    message: ApplyChange,
    rows: trust.Rows,
    now: datetime,
) -> tuple[Applied, Change]:
    found = rows.get(message.instance_id)
    if found is None or message.owner_id not in (None, found[0].owner_id):
        raise NotFoundError(f"no instance {message.instance_id}")
    before, facts = found
    _check_version(message, before)
    change = message.change
    if isinstance(change, Wish):
        change = order(before, change)
    after = advance(before, facts, change, now)
    if conn is None or not message.companions:
        return Applied(before=before, after=after), change
    async with savepoint(conn):
        with trust.storable():
            written = [await each.write(conn, before) for each in message.companions]
    return Applied(before=before, after=after, written=tuple(written)), change


def _check_version(message: ApplyChange, before: Snapshot) -> None:
    expected, current = message.expected_version, before.version
    if expected is None and message.requires_version:
        raise VersionRequiredError(
            "expected_version is required: send the version you decided on",
            expected=None,
            current=current,
        )
    if expected is not None and expected != current:
        raise VersionConflictError(
            f"instance {before.instance_id} is at version {current}, not {expected}",
            expected=expected,
            current=current,
        )
