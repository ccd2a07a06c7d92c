"""What the dispatcher decides: a run for what is distrusted, and whose turn it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from trustfabric.domain.ids import InstanceId, OwnerId, RunId
from trustfabric.domain.playbooks import Playbook
from trustfabric.domain.runs import NewRun, Run, RunOrder, enqueue
from trustfabric.domain.trust import Change, Signal, Tag
from trustfabric.errors import InvalidError

DISPATCHER = "actor:dispatcher"


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """How runs are staged and given out."""

    runtime_id: str
    """Stays the same when this runtime starts again: what it left is its to end."""
    default_playbook: str = "default-vm-remediation"
    requester_may_approve: bool = False
    max_attempts: int = 3
    concurrency: int = 4
    owner_concurrency: int = 2
    tick_s: float = 5.0
    approval_ttl_s: float = 86_400.0
    queue_ttl_s: float = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Distrusted:
    """A quarantined instance for which nothing was decided since it became so."""

    instance_id: InstanceId
    owner_id: OwnerId
    version: int
    attempts: int
    held: bool
    """Somebody holds the instance, its owner or everything."""
    active_run: RunId | None
    """A run staged before the quarantine began: it is taken up, not doubled."""
    active_run_waits: bool
    """That run waits for approval."""
    history_id: int
    """The transition that quarantined it."""
    reason: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """What the instance's trust row is told, and the run that goes with it."""

    change: Change
    run: NewRun | None = None


def remedy(
    found: Distrusted, playbook: Playbook | None, *, max_attempts: int, now: datetime
) -> Remedy:
    """Decide on one quarantine; each of these is decided once for it."""
    if found.active_run is not None:
        tag = Tag.PENDING_APPROVAL if found.active_run_waits else Tag.AWAITING_EXECUTOR
        return Remedy(
            _change(Signal.RUN_STAGED, tag, f"run {found.active_run} is active already")
        )
    if found.held:
        return Remedy(held_note())
    if found.attempts >= max_attempts:
        return _note(
            Tag.ATTEMPTS_EXHAUSTED, f"{found.attempts} attempts did not restore it"
        )
    if playbook is None:
        return _note(Tag.NO_PLAYBOOK, "its owner has no default playbook")
    order = RunOrder(
        instance_id=found.instance_id,
        requested_by=DISPATCHER,
        metadata={
            "trigger": {
                "history_id": found.history_id,
                "transition_reason": found.reason,
            }
        },
    )
    try:
        run = enqueue(playbook, order, now)
    except InvalidError as error:
        told = f"playbook {playbook.key} waits for a person's parameters: {error}"
        return _note(Tag.NO_PLAYBOOK, told)
    reason = f"playbook {playbook.key} staged: {found.reason}"
    return Remedy(_change(Signal.RUN_STAGED, run.tag, reason), run)


def pick(
    ready: Sequence[Run],
    running: Mapping[OwnerId, int],
    *,
    free: int,
    per_owner: int,
) -> list[Run]:
    """Choose what to claim of `ready`, which is in order, fair between owners.

    Whoever has fewest runs under way is next; of those, whose run is first in order.
    """
    counts, waiting = Counter(running), list(ready)
    chosen: list[Run] = []
    while len(chosen) < free:
        allowed = [run for run in waiting if counts[run.owner_id] < per_owner]
        if not allowed:
            break
        run = min(allowed, key=lambda one: counts[one.owner_id])
        counts[run.owner_id] += 1
        waiting.remove(run)
        chosen.append(run)
    return chosen


def held_note() -> Change:
    """Note that what is due waits for the end of a hold."""
    return _change(Signal.ANNOTATED, Tag.HELD, "automatic remediation is held")


def held_no_longer() -> Change:
    """Note that the run which was held waits only for its turn."""
    tag = Tag.AWAITING_EXECUTOR
    return _change(Signal.ANNOTATED, tag, "automatic remediation is held no longer")


def _note(tag: Tag, reason: str) -> Remedy:
    return Remedy(_change(Signal.ANNOTATED, tag, reason))


def _change(signal: Signal, tag: Tag, reason: str) -> Change:
    return Change(signal=signal, actor=DISPATCHER, reason=reason, tag=tag)
