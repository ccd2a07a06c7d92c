"""Asking the placement gate: one read, one decision, kept with its notes."""

from datetime import datetime

from trustfabric.db import placement
from trustfabric.db.session import Database
from trustfabric.domain.ids import RunId, ServerId
from trustfabric.domain.placement import Decision, decide, policy_notes


async def ask_gate(
    database: Database,
    server_id: ServerId,
    now: datetime,
    *,
    backend: str,
    tier: str,
    for_run: RunId | None = None,
) -> Decision:
    """Decide whether the server may launch and record the decision.

    Whatever goes wrong here raises: a gate that can't be evaluated refuses.
    """
    async with database.writing() as conn:
        situation = await placement.read_situation(conn, server_id, now)
        decision = decide(situation, now, for_run=for_run)
        await placement.record_decision(
            conn,
            placement.PolicyDecision(
                server_id=server_id,
                backend=backend,
                tier=tier,
                notes=(*decision.notes, *policy_notes(situation)),
                allowed=decision.allowed,
                decided_at=now,
            ),
        )
    return decision


async def explain(
    database: Database, server_id: ServerId, now: datetime
) -> tuple[Decision, tuple[str, ...]]:
    """Say what the gate would answer now, and the policy engine's notes."""
    async with database.reading() as conn:
        situation = await placement.read_situation(conn, server_id, now)
    return decide(situation, now), policy_notes(situation)
