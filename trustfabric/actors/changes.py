"""Changes of trust, and the decisions on a round of them: at most one an instance."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

import structlog

from trustfabric.db import trust
from trustfabric.db.companions import Companion, Gathered
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
    companions: tuple[Companion, ...] = ()


Outcome = Applied | FabricError


@dataclass(slots=True)
class Round:
    """The decisions of one transaction; at most one change for each instance."""

    now: datetime
    outcomes: list[Outcome | None] = field(default_factory=list)
    _moves: dict[InstanceId, trust.Transition] = field(default_factory=dict)
    _touched: dict[InstanceId, int] = field(default_factory=dict)
    """Whose outcome, and where it is."""
    remembered: frozenset[InstanceId] = frozenset()
    """Whose rows weren't read: on those only a move can be decided, to be tried."""
    _together: dict[type[Companion], list[tuple[int, Companion, Applied]]] = field(
        default_factory=dict
    )
    """Companions that are written by their kind: whose, and where its outcome is."""

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
            applied, change = _decide(one, rows, self.now)
            if conn is not None and one.companions and not _is_gathered(one):
                applied = await _with_companions(conn, one, applied)
        except FabricError as error:
            self._end(one, error)
            return
        at, moved = len(self.outcomes), applied.after is not applied.before
        if not (moved or one.companions):
            self._end(one, applied)
            return
        self.outcomes.append(applied)
        self._touched[one.instance_id] = at
        if moved:
            move = trust.Transition(applied.before, applied.after, change)
            self._moves[one.instance_id] = move
        if conn is not None and _is_gathered(one):
            (companion,) = one.companions
            together = self._together.setdefault(type(companion), [])
            together.append((at, companion, applied))

    async def write_gathered(self, conn: Connection) -> None:
        """Write the companions of each kind together; who is refused moves nothing."""
        for kind, together in self._together.items():
            assert issubclass(kind, Gathered)
            written = await kind.write_all(
                conn,
                [(companion, applied.before) for _, companion, applied in together],
            )
            for (at, _, applied), value in zip(together, written, strict=True):
                if isinstance(value, FabricError):
                    self.outcomes[at] = value
                    self._moves.pop(applied.before.instance_id, None)
                else:
                    self.outcomes[at] = replace(applied, written=(value,))

    @property
    def moves(self) -> list[trust.Transition]:
        return list(self._moves.values())

    def _end(self, one: ApplyChange, outcome: Outcome) -> None:
        """Write nothing; but that may only be said of a row that was read."""
        if one.instance_id in self.remembered:
            self._touched[one.instance_id] = len(self.outcomes)
            self.outcomes.append(None)
        else:
            self.outcomes.append(outcome)

    def put_off(self, missed: set[InstanceId]) -> None:
        """Leave to the next round what could not be written."""
        for instance_id in missed:
            del self._moves[instance_id]
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


def _decide(
    message: ApplyChange, rows: trust.Rows, now: datetime
) -> tuple[Applied, Change]:
    found = rows.get(message.instance_id)
    if found is None or message.owner_id not in (None, found[0].owner_id):
        raise NotFoundError(f"no instance {message.instance_id}")
    before, facts = found
    _check_version(message, before)
    change = message.change
    if isinstance(change, Wish):
        change = order(before, change, now)
    return Applied(before=before, after=advance(before, facts, change, now)), change


def _is_gathered(message: ApplyChange) -> bool:
    return len(message.companions) == 1 and _gathers(type(message.companions[0]))


@cache
def _gathers(kind: type[Companion]) -> bool:
    return issubclass(kind, Gathered)


async def _with_companions(
    conn: Connection, message: ApplyChange, applied: Applied
) -> Applied:
    before = applied.before
    async with savepoint(conn):
        with trust.storable():
            written = [await each.write(conn, before) for each in message.companions]
    return replace(applied, written=tuple(written))


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
