"""Reasons, the facts that they are told from, and what would clear them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from trustfabric.domain.holds import Hold, HoldScope
from trustfabric.domain.ids import AttestationId, HistoryId, InstanceId
from trustfabric.domain.placement import Decision
from trustfabric.domain.runs import Run
from trustfabric.domain.storms import Incident
from trustfabric.domain.times import rfc3339
from trustfabric.domain.trust import Lifecycle, Snapshot


class About(StrEnum):
    TRUST = "trust"
    REMEDIATION = "remediation"
    PLACEMENT = "placement"


@dataclass(frozen=True, slots=True)
class Next:
    """What would clear a reason: as a command, and as a request."""

    command: str
    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    about: About
    code: str
    """Stable, for programs; docs/storms.md lists them."""
    text: str
    blocks: bool = True
    """False: it is under way, or only worth knowing."""
    source: str
    """The row that says so: `run:7`, `hold:3`, `history:12`, …"""
    since: datetime | None = None
    until: datetime | None = None
    fact: Mapping[str, Any] = field(default_factory=dict)
    next: tuple[Next, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """The history row that brought the present lifecycle, or the present status."""

    id: HistoryId
    at: datetime
    reason: str
    actor: str
    run_id: int | None = None
    """Of the run whose end it was."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The newest verdict on evidence."""

    id: AttestationId
    kind: str
    status: str
    at: datetime
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Question:
    """A challenge that nobody has answered yet."""

    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Of the settings, what remediation goes by."""

    max_attempts: int = 3
    default_playbook: str = "default-vm-remediation"
    executors: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known of one instance, read in one transaction."""

    snapshot: Snapshot
    terminated_at: datetime | None
    newest: InstanceId
    """The newest instance of its server: the one that the gate looks at."""
    lifecycle_by: Entry
    status_by: Entry
    verdict: Verdict | None = None
    question: Question | None = None
    decision: Decision | None = None
    """The gate's; None: its server was deleted."""
    run: Run | None = None
    last_run: Run | None = None
    holds: Sequence[Hold] = ()
    incidents: Sequence[Incident] = ()
    """Open ones, by id of their hold's incident."""
    playbook_executor: str | None = None
    """Of the default playbook; None: the owner has none."""


def hold_reason(hold: Hold) -> Reason:
    ends = "" if hold.until is None else f" until {rfc3339(hold.until)}"
    return Reason(
        about=About.REMEDIATION,
        code="hold",
        text=f"{hold.by} holds {_scope(hold)}{ends}: {hold.reason}",
        source=f"hold:{hold.id}",
        since=hold.created_at,
        until=hold.until,
        fact={"scope": hold.scope, "by": hold.by, "reason": hold.reason},
        next=(release_hold(hold),),
    )


def _scope(hold: Hold) -> str:
    match hold.scope:
        case HoldScope.INSTANCE:
            return f"instance {hold.instance_id}"
        case HoldScope.OWNER:
            return f"all of owner {hold.owner_id}"
        case _:
            return "everything"


def ways_out(facts: Facts) -> tuple[Next, ...]:
    match facts.snapshot.lifecycle:
        case Lifecycle.QUARANTINED:
            return (release(facts),)
        case Lifecycle.SUSPECT:
            return (attest(facts),)
        case _:
            return ()


def attest(facts: Facts) -> Next:
    server = facts.snapshot.server_id
    return Next(
        f"mcpctl servers attest {server}", f"POST /api/servers/{server}/vm/attest"
    )


def start(facts: Facts) -> Next:
    server = facts.snapshot.server_id
    return Next(f"mcpctl servers start {server}", f"POST /api/servers/{server}/start")


def release(facts: Facts) -> Next:
    instance = facts.snapshot.instance_id
    return Next(
        f"mcpctl trust release {instance} --reason TEXT",
        f"POST /api/trust/registry/{instance}/release",
    )


def release_server(facts: Facts) -> Next:
    server = facts.snapshot.server_id
    return Next(
        f"mcpctl servers release {server} --reason TEXT",
        f"POST /api/servers/{server}/release",
    )


def release_hold(hold: Hold) -> Next:
    return Next(
        f"mcpctl trust release-hold {hold.id}", f"DELETE /api/trust/holds/{hold.id}"
    )


def enqueue(facts: Facts, rules: Rules) -> Next:
    return Next(
        f"mcpctl remediation runs enqueue {facts.snapshot.instance_id} "
        f"{rules.default_playbook}",
        "POST /api/trust/remediation/runs",
    )
