"""Why a server's launch is refused: the gate's blocking notes, explained one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trustfabric.domain.reasons import (
    About,
    Facts,
    Next,
    Reason,
    attest,
    hold_reason,
    release_hold,
    release_server,
    ways_out,
)


def placement(facts: Facts) -> Iterator[Reason]:
    """Return a reason for each note that blocks; none where the gate allows."""
    if facts.decision is None:
        yield Reason(
            about=About.PLACEMENT,
            code="server-deleted",
            text="its server was deleted",
            source=f"server:{facts.snapshot.server_id}",
        )
        return
    for note in facts.decision.blocking:
        yield _explained(facts, note)


def _explained(facts: Facts, note: str) -> Reason:
    plain = Reason(
        about=About.PLACEMENT,
        code="gate",
        text=f"the gate refuses: {note}",
        source=f"instance:{facts.newest}",
        fact={"note": note},
    )
    match note.split(":"):
        case ["trust", word, *rest] if facts.newest == facts.snapshot.instance_id:
            return _trust(facts, plain, word, rest)
        case ["policy_hook", hook, *rest]:
            gate, _, word = hook.partition("=")
            if gate == "accelerator_gate":  # its id may be a PCI address: 0000:65:00.0
                name, _, posture = ":".join((word, *rest)).rpartition(":")
                text = f"accelerator {name} is {posture}, which does not pass"
                return replace(plain, code="gate-accelerator", text=text)
            return _remediation(facts, replace(plain, code=f"gate-{word}"), word, rest)
        case _:
            return plain


def _trust(facts: Facts, plain: Reason, word: str, rest: Sequence[str]) -> Reason:
    row, by = facts.snapshot, facts.lifecycle_by
    if word == "freshness-expired":
        return replace(
            plain,
            code="gate-evidence-stale",
            text="its evidence has run out while it runs",
            source=f"registry:{row.version}",
            since=row.freshness_deadline,
            next=(attest(facts),),
        )
    gone = facts.terminated_at is not None
    return replace(
        plain,
        code=f"gate-{word}-{':'.join(rest)}",
        text=f"{'it ended' if gone else 'it is'} {':'.join(rest)}",
        source=f"history:{by.id}",
        since=by.at,
        next=(release_server(facts),) if gone else ways_out(facts),
    )


def _remediation(facts: Facts, plain: Reason, word: str, rest: Sequence[str]) -> Reason:
    if word == "active-run" and facts.run is not None:
        run = facts.run
        cancel = Next(
            f"mcpctl remediation runs cancel {run.id}",
            f"POST /api/trust/remediation/runs/{run.id}/cancel",
        )
        return replace(
            plain,
            text=f"run {run.id} works on it, or is about to",
            source=f"run:{run.id}",
            since=run.queued_at,
            next=(cancel,),
        )
    if word == "failure" and facts.last_run is not None:
        last, why = facts.last_run, ":".join(rest)
        again = Next(
            f"mcpctl remediation runs retry {last.id}",
            f"POST /api/trust/remediation/runs/{last.id}/retry",
        )
        return replace(
            plain,
            text=f"its last run failed ({why}) and no trusted verdict came since",
            source=f"run:{last.id}",
            since=last.completed_at or last.cancelled_at,
            next=(again, attest(facts)),
        )
    people = [h for h in facts.holds if not h.is_breakers and h.scope in rest]
    if word == "held" and people:
        first = hold_reason(people[0])
        return replace(
            plain,
            text=first.text,
            source=first.source,
            since=first.since,
            until=first.until,
            next=tuple(release_hold(hold) for hold in people),
        )
    return plain
