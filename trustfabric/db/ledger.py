"""The ledger: what runs' actors write under their leases, many runs at a time.

An entry that isn't under its run's lease any more writes nothing. Runs that somebody
else has locked are left out, not waited for: a ledger holds many and waits for none,
so that no two writers can wait for each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from trustfabric.db.artifacts import digest_logs
from trustfabric.db.run_events import append, count_log
from trustfabric.db.runs import lock_runs
from trustfabric.db.session import Connection
from trustfabric.domain.executors import LogStream, RemediationLogEvent
from trustfabric.domain.ids import RunId
from trustfabric.domain.run_events import LogDigest, RunEvent, begins, log_event
from trustfabric.domain.runs import Run

LOG_LINES = 10_000
"""After so many, earlier attempts' lines are not read together with more of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one run's actor has to write."""

    run_id: RunId
    epoch: int
    now: datetime
    until: datetime | None = None
    """Renews the lease up to then; one that has run out by `now` is never renewed."""
    begins: bool = False
    """Notes that the attempt begins: its program may have been started from now on."""
    lines: Sequence[RunEvent] = ()
    in_store: int = 0
    """Log lines of the run that are in the database for certain."""
    is_unsure: bool = False
    """More of them may be, the first of `lines`: of a commit with a lost answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """An entry that was made; or was not, since its lease is not the run's any more."""

    held: bool
    run: Run | None = None
    in_store: int = 0
    through_seq: int = 0
    """The last number of the run's events, where it had lines to write."""
    log: LogDigest | None = None
    """Of an entry that begins: the log with all attempts before."""


@dataclass(slots=True)
class _Line:
    """An entry, the run it is for, and what of it is still to be written."""

    entry: Entry
    run: Run
    events: Sequence[RunEvent]
    in_store: int


async def enter(conn: Connection, entries: Sequence[Entry]) -> dict[RunId, Entered]:
    """Make entries, at most one for each run; missing is what others have locked.

    InvalidError where a line can't be stored: that spoils the transaction.
    """
    runs = await lock_runs(conn, [one.run_id for one in entries], skip_locked=True)
    found = [(one, runs[one.run_id]) for one in entries if one.run_id in runs]
    held = [(one, run) for one, run in found if _is_held(one, run)]
    await _renew(conn, held)
    uncertain = [one.run_id for one, _ in held if one.begins or one.is_unsure]
    counts = await count_log(conn, uncertain)
    made = [_line(one, run, counts) for one, run in held]
    earlier = await _earlier_logs(conn, made)
    writing = [one for one in made if one.entry.begins or one.entry.lines]
    last = await append(conn, ((one.run, one.events) for one in writing))
    entered = {one.run_id: Entered(held=False) for one, _ in found}
    for one in made:
        run_id, through_seq = one.run.id, last.get(one.run.id, 0)
        log = earlier.get(run_id, LogDigest()).after(one.events, through_seq)
        entered[run_id] = Entered(
            held=True,
            run=one.run,
            in_store=one.in_store + len(one.events),
            through_seq=through_seq,
            log=log if one.entry.begins else None,
        )
    return entered


def _is_held(entry: Entry, run: Run) -> bool:
    if not run.is_under(entry.epoch):
        return False
    if entry.until is None:
        return True
    return run.lease_expires_at is not None and run.lease_expires_at > entry.now


def _line(entry: Entry, run: Run, counts: Mapping[RunId, int]) -> _Line:
    in_store = counts.get(run.id, entry.in_store)
    if entry.begins:
        line = RemediationLogEvent(LogStream.SYSTEM, begins(run.attempt))
        return _Line(entry, run, [log_event(line, entry.now)], in_store)
    return _Line(entry, run, entry.lines[in_store - entry.in_store :], in_store)


_RENEW_SQL: LiteralString = """
UPDATE runtime_vm_remediation_runs r SET lease_expires_at = t.until
  FROM unnest(%(ids)s::bigint[], %(untils)s::timestamptz[]) AS t (id, until)
 WHERE r.id = t.id
"""


async def _renew(conn: Connection, held: Sequence[tuple[Entry, Run]]) -> None:
    untils = {run.id: one.until for one, run in held if one.until is not None}
    if untils:
        await conn.execute(
            _RENEW_SQL, {"ids": list(untils), "untils": list(untils.values())}
        )


async def _earlier_logs(
    conn: Connection, made: Sequence[_Line]
) -> dict[RunId, LogDigest]:
    """Read what earlier attempts have logged of those that begin, some at a time."""
    logs: dict[RunId, LogDigest] = {}
    some: list[RunId] = []
    lines = 0
    for one in made:
        if one.entry.begins and one.in_store:
            some.append(one.run.id)
            lines += one.in_store
        if lines >= LOG_LINES:
            logs |= await digest_logs(conn, some)
            some, lines = [], 0
    return logs | await digest_logs(conn, some)
