"""Why nothing is done about a distrusted instance, or what is."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from trustfabric.domain.dispatch import DISPATCHER
from trustfabric.domain.failures import FailureReason, classification_of
from trustfabric.domain.holds import Hold, HoldScope
from trustfabric.domain.reasons import (
    About,
    Facts,
    Next,
    Reason,
    Rules,
    attest,
    enqueue,
    hold_reason,
    release,
)
from trustfabric.domain.runs import ApprovalState, Run, RunStatus
from trustfabric.domain.storms import sentence
from trustfabric.domain.times import rfc3339
from trustfabric.domain.trust import Lifecycle, Tag


def remediation(facts: Facts, rules: Rules, now: datetime) -> Iterator[Reason]:
    if facts.terminated_at is not None:
        return
    distrusted = facts.snapshot.lifecycle in {
        Lifecycle.QUARANTINED,
        Lifecycle.REMEDIATING,
    }
    if not distrusted and facts.run is None and not facts.holds:
        return
    yield from _held(facts)
    if facts.run is not None:
        yield from _active_run(facts, facts.run, rules, now)
    elif facts.snapshot.lifecycle is Lifecycle.QUARANTINED:
        yield _not_staged(facts, rules)
    elif facts.snapshot.lifecycle is Lifecycle.REMEDIATING:
        yield Reason(
            about=About.REMEDIATION,
            code="re-attestation-due",
            text="its run is over; fresh evidence decides what comes of it",
            blocks=False,
            source=f"registry:{facts.snapshot.version}",
            since=facts.snapshot.updated_at,
            next=(attest(facts),),
        )


def _held(facts: Facts) -> Iterator[Reason]:
    incidents = {incident.id: incident for incident in facts.incidents}
    for hold in facts.holds:
        incident = None if hold.incident_id is None else incidents.get(hold.incident_id)
        if hold.incident_id is None:
            yield hold_reason(hold)
        elif _spares(hold, facts.run):
            continue
        else:
            told = hold.reason if incident is None else sentence(incident)
            if hold.scope is HoldScope.ALL:
                told = "too many of the fleet's VMs were quarantined at once"
            yield Reason(
                about=About.REMEDIATION,
                code="breaker-open",
                text=f"automatic runs are held: {told}",
                source=f"incident:{hold.incident_id}",
                since=hold.created_at,
                fact={"scope": hold.scope, "incident_id": hold.incident_id},
                next=(
                    Next(
                        "mcpctl remediation release-breaker --incident "
                        f"{hold.incident_id} --reason TEXT",
                        "POST /api/trust/remediation/breaker/release",
                    ),
                ),
            )


def _spares(hold: Hold, run: Run | None) -> bool:
    """Whether the breaker lets this run go on: somebody asked for it."""
    if run is None:
        return False
    if run.status is RunStatus.RUNNING or run.requested_by != DISPATCHER:
        return True
    decided = run.approval_decided_at
    return decided is not None and decided >= hold.created_at


def _active_run(
    facts: Facts, run: Run, rules: Rules, now: datetime
) -> Iterator[Reason]:
    source = f"run:{run.id}"
    sla = run.sla_deadline
    if sla is not None and sla <= now:
        yield Reason(
            about=About.REMEDIATION,
            code="sla-breached",
            text=f"run {run.id} should have been done by {rfc3339(sla)}",
            blocks=False,
            source=source,
            since=sla,
        )
    match run.status, run.approval_state:
        case RunStatus.PENDING, ApprovalState.PENDING:
            yield Reason(
                about=About.REMEDIATION,
                code="approval-missing",
                text=f"run {run.id} of playbook {run.playbook} waits for an approval",
                source=source,
                since=run.queued_at,
                fact={
                    "requested_by": run.requested_by,
                    "playbook": run.playbook,
                    "approvals_given": run.approvals_given,
                    "approvals_required": run.approvals_required,
                },
                next=(
                    Next(
                        f"mcpctl remediation runs approve {run.id}",
                        f"POST /api/trust/remediation/runs/{run.id}/approval",
                    ),
                ),
            )
        case RunStatus.PENDING, _:
            yield _queued(run, rules, now)
        case _:
            attempts = facts.snapshot.remediation_attempts
            yield Reason(
                about=About.REMEDIATION,
                code="run-running",
                text=f"run {run.id} of playbook {run.playbook} is at work",
                blocks=False,
                source=source,
                since=run.started_at,
                until=run.lease_expires_at,
                fact={
                    "lease_owner": run.lease_owner,
                    "lease_expires_at": run.lease_expires_at,
                    "attempts": attempts,
                    "max_attempts": rules.max_attempts,
                },
                next=(
                    Next(
                        f"mcpctl remediation runs logs {run.id}",
                        f"GET /api/trust/remediation/runs/{run.id}/logs",
                    ),
                ),
            )


def _queued(run: Run, rules: Rules, now: datetime) -> Reason:
    executor = str(run.executor_type)
    fact = {"executor_type": executor, "attempt": run.attempt}
    if run.not_before is not None and run.not_before > now:
        is_away = run.failure_reason is FailureReason.EXECUTOR_UNAVAILABLE
        return Reason(
            about=About.REMEDIATION,
            code="executor-unavailable" if is_away else "retry-scheduled",
            text=(
                f"run {run.id} failed ({run.failure_reason}) and is tried again at "
                f"{rfc3339(run.not_before)}"
            ),
            source=f"run:{run.id}",
            since=run.updated_at,
            until=run.not_before,
            fact={
                **fact,
                "failure_reason": run.failure_reason,
                "last_error": run.last_error,
            },
        )
    if rules.executors and executor not in rules.executors:
        return Reason(
            about=About.REMEDIATION,
            code="executor-unavailable",
            text=f"this runtime has no executor for {executor} playbooks",
            source=f"run:{run.id}",
            since=run.queued_at,
            fact=fact,
        )
    return Reason(
        about=About.REMEDIATION,
        code="run-queued",
        text=f"run {run.id} of playbook {run.playbook} waits for its turn",
        source=f"run:{run.id}",
        since=run.approval_decided_at or run.queued_at,
        fact=fact,
    )


def _not_staged(facts: Facts, rules: Rules) -> Reason:
    row, last, by = facts.snapshot, facts.last_run, facts.lifecycle_by
    attempts: Mapping[str, Any] = {
        "attempts": row.remediation_attempts,
        "max_attempts": rules.max_attempts,
    }
    hand = (enqueue(facts, rules), release(facts))
    code, text, source, fact = "run-due", "a run is about to be staged", "", attempts
    if by.run_id is not None or row.remediation_state is Tag.UNVERIFIED:
        reason = None if last is None else last.failure_reason
        kind = "" if reason is None else f" ({reason}, {classification_of(reason)})"
        unverified = row.remediation_state is Tag.UNVERIFIED
        code = "run-unverified" if unverified else "run-failed"
        text = (
            "its last run ended, but no evidence came that would show what it did; "
            "a person decides"
            if unverified
            else f"its last run did not help{kind}; a person decides what is next"
        )
        source = f"run:{by.run_id}" if by.run_id is not None else ""
        if last is not None:
            fact = {
                **attempts,
                "failure_reason": reason,
                "last_error": last.last_error,
                "run_id": last.id,
            }
    elif row.remediation_attempts >= rules.max_attempts:
        code = "attempts-exhausted"
        text = (
            f"{row.remediation_attempts} of {rules.max_attempts} attempts did not "
            "restore it; a person decides what is next"
        )
    elif facts.playbook_executor is None:
        code = "no-playbook"
        text = f"its owner has no playbook {rules.default_playbook}"
        fact = {**attempts, "playbook": rules.default_playbook}
    elif facts.holds:
        code, text = "run-held", "what is due is decided once nothing holds it"
    return Reason(
        about=About.REMEDIATION,
        code=code,
        text=text,
        blocks=code != "run-due",
        source=source or f"history:{by.id}",
        since=by.at,
        fact=fact,
        next=hand if code not in {"run-due", "run-held"} else (),
    )
