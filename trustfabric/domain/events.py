"""What happened, as the database tells it: positions and typed events."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from trustfabric.domain.holds import HoldEvent
from trustfabric.domain.ids import (
    AttestationId,
    HistoryId,
    InstanceId,
    OwnerId,
    RunId,
    ServerId,
)
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Tag
from trustfabric.errors import MalformedError

_TEXT_LIMIT = 64


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a reader stands: the transaction, then the row in it.

    Ordered by (xid, id) below the snapshot horizon this never skips a row that
    commits late, which ids alone would (ids are taken before the commit).
    """

    xid: int
    id: int

    FIRST: ClassVar["Position"]
    LAST: ClassVar["Position"]

    @classmethod
    def read(cls, text: str) -> "Position":
        """Read `<xid>-<id>` as it went out in an event's id."""
        xid, dash, row = text.partition("-")
        # isdecimal alone would let other scripts' digits through.
        numbers = xid.isdecimal() and row.isdecimal() and text.isascii()
        if not (dash and numbers and len(text) <= _TEXT_LIMIT):
            raise MalformedError(f"last_event_id: {text[:64]!r} is no position")
        position = cls(int(xid), int(row))
        if max(position.xid, position.id) > cls.LAST.id:
            raise MalformedError(f"last_event_id: {text[:64]!r} is no position")
        return position

    def __str__(self) -> str:
        return f"{self.xid}-{self.id}"


Position.FIRST = Position(0, 0)
Position.LAST = Position(2**63 - 1, 2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustEvent:
    """One row of the trust history."""

    position: Position
    history_id: HistoryId
    instance_id: InstanceId
    instance_name: str
    server_id: ServerId
    server_name: str
    owner_id: OwnerId
    previous_status: AttestationStatus | None
    status: AttestationStatus
    previous_lifecycle: Lifecycle | None
    lifecycle: Lifecycle
    reason: str
    remediation_state: Tag
    remediation_attempts: int
    freshness_deadline: datetime | None
    provenance_ref: str | None
    provenance: Mapping[str, Any] | None
    version: int
    actor: str
    attestation_id: AttestationId | None
    metadata: Mapping[str, Any]
    triggered_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RemediationEvent:
    """One row of a run's log: a line that it printed, or a change of its status."""

    position: Position
    run_id: RunId
    instance_id: InstanceId
    server_id: ServerId
    owner_id: OwnerId
    seq: int
    """1, 2, 3 … per run."""
    kind: str
    """`log` or `status`."""
    stream: str | None
    message: str
    payload: Mapping[str, Any]
    """The stream's data of contract §6, frozen when it was written."""
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldEvent:
    """Something happened to a hold, or to the breaker whose hold it is."""

    position: Position
    event: HoldEvent
