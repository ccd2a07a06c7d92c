"""The JSON shape of each value, shared by REST and the streams."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from trustfabric.db.artifacts import Artifact
from trustfabric.db.evaluations import Standing
from trustfabric.db.intelligence import CapabilityScore
from trustfabric.db.refreshes import Refresh
from trustfabric.db.vms import Instance
from trustfabric.domain.accelerators import Accelerator
from trustfabric.domain.events import TrustEvent
from trustfabric.domain.playbooks import Playbook
from trustfabric.domain.run_events import LogLine
from trustfabric.domain.runs import Run
from trustfabric.domain.seeds import without_seed
from trustfabric.domain.servers import Server
from trustfabric.domain.trust import Snapshot, is_stale
from trustfabric.supervision import ActorReport

View = Mapping[str, Any]


def posture_view(row: Snapshot, now: datetime, *, provenance: bool = True) -> View:
    """Show a registry row as lists, details, transitions and snapshots answer it."""
    view = {
        "server_id": row.server_id,
        "server_name": row.server_name,
        "vm_instance_id": row.instance_id,
        "instance_id": row.instance_name,
        "attestation_status": row.attestation_status,
        "lifecycle_state": row.lifecycle,
        "remediation_state": row.remediation_state,
        "remediation_attempts": row.remediation_attempts,
        "freshness_deadline": row.freshness_deadline,
        "provenance_ref": row.provenance_ref,
        "version": row.version,
        "updated_at": row.updated_at,
        "stale": is_stale(row.freshness_deadline, now),
    }
    return {**view, "provenance": row.provenance} if provenance else view


def trust_event_view(event: TrustEvent, now: datetime, *, provenance: bool) -> View:
    """Show a transition as the trust stream tells it."""
    view = {
        "history_id": event.history_id,
        "server_id": event.server_id,
        "server_name": event.server_name,
        "vm_instance_id": event.instance_id,
        "instance_id": event.instance_name,
        "previous_attestation_status": event.previous_status,
        "attestation_status": event.status,
        "previous_lifecycle_state": event.previous_lifecycle,
        "lifecycle_state": event.lifecycle,
        "transition_reason": event.reason,
        "remediation_state": event.remediation_state,
        "remediation_attempts": event.remediation_attempts,
        "freshness_deadline": event.freshness_deadline,
        "provenance_ref": event.provenance_ref,
        "version": event.version,
        "actor": event.actor,
        "updated_at": event.triggered_at,
        "triggered_at": event.triggered_at,
        "stale": is_stale(event.freshness_deadline, now),
    }
    return {**view, "provenance": event.provenance} if provenance else view


def history_view(event: TrustEvent) -> View:
    """Show a transition as the history endpoint lists it."""
    return {
        "id": event.history_id,
        "history_id": event.history_id,
        "attestation_id": event.attestation_id,
        "previous_status": event.previous_status,
        "current_status": event.status,
        "previous_attestation_status": event.previous_status,
        "attestation_status": event.status,
        "previous_lifecycle_state": event.previous_lifecycle,
        "current_lifecycle_state": event.lifecycle,
        "lifecycle_state": event.lifecycle,
        "transition_reason": event.reason,
        "remediation_state": event.remediation_state,
        "remediation_attempts": event.remediation_attempts,
        "freshness_deadline": event.freshness_deadline,
        "provenance_ref": event.provenance_ref,
        "provenance": event.provenance,
        "metadata": event.metadata,
        "registry_version": event.version,
        "version": event.version,
        "actor": event.actor,
        "triggered_at": event.triggered_at,
    }


def server_view(server: Server) -> View:
    """Show a server as its owner sees it."""
    return {
        "id": server.id,
        "owner_id": server.owner_id,
        "name": server.name,
        "server_type": server.server_type,
        "status": server.status,
        "config": without_seed(server.config),
        "created_at": server.created_at,
        "updated_at": server.updated_at,
    }


def instance_view(
    instance: Instance, row: Snapshot, latest: TrustEvent | None, now: datetime
) -> dict[str, Any]:
    """Show an instance with its trust badges, as `/api/servers/{id}/vm` lists it."""
    return {
        "id": instance.id,
        "instance_id": instance.name,
        "isolation_tier": instance.isolation_tier,
        "driver": instance.driver,
        "image": instance.image,
        "memory_mib": instance.memory_mib,
        "vcpu_count": instance.vcpu_count,
        "desired_state": instance.desired_state,
        "power_state": instance.power_state,
        "boot_id": instance.boot_id,
        "capability_notes": instance.capability_notes,
        "last_error": instance.last_error,
        "crashed_at": instance.crashes,
        "attestation_policy": instance.attestation_policy,
        "attestation_status": row.attestation_status,
        "trust_lifecycle_state": row.lifecycle,
        "trust_previous_lifecycle_state": latest and latest.previous_lifecycle,
        "trust_freshness_deadline": row.freshness_deadline,
        "trust_remediation_attempts": row.remediation_attempts,
        "trust_provenance_ref": row.provenance_ref,
        "trust_provenance": row.provenance,
        "remediation_state": row.remediation_state,
        "stale": is_stale(row.freshness_deadline, now),
        "version": row.version,
        "terminated_at": instance.terminated_at,
        "created_at": instance.created_at,
        "updated_at": instance.updated_at,
    }


def accelerator_view(one: Accelerator) -> View:
    """Show an accelerator of an instance, and what it counts for at the gate now."""
    return {
        "accelerator_id": one.accelerator_id,
        "accelerator_type": one.accelerator_type,
        "posture": one.posture_now,
        "policy_feedback": one.policy_feedback,
        "attestation_id": one.attestation_id,
        "fresh_until": one.fresh_until,
    }


def actor_view(report: ActorReport) -> View:
    """Show one line of the supervision tree."""
    return {
        "path": report.path,
        "kind": report.kind,
        "state": report.state,
        "epoch": report.epoch,
        "restart_count": report.restart_count,
        "restarts": [
            {"at": restart.at, "reason": restart.reason} for restart in report.restarts
        ],
        "mailbox_depth": report.depth,
        "current": report.current,
        "age_seconds": report.current_age_s,
        "waiting_on": report.waiting_on,
    }


def playbook_view(playbook: Playbook) -> View:
    """Show a playbook: the columns of its table."""
    return {
        "id": playbook.id,
        "playbook_key": playbook.key,
        "display_name": playbook.display_name,
        "description": playbook.description,
        "executor_type": playbook.executor_type,
        "owner_id": playbook.owner_id,
        "approval_required": playbook.approval_required,
        "sla_duration_seconds": playbook.sla_duration_s,
        "metadata": playbook.metadata,
        "version": playbook.version,
        "created_at": playbook.created_at,
        "updated_at": playbook.updated_at,
    }


def run_view(run: Run) -> View:
    """Show a run: the columns of its table, less the lease."""
    return {
        "id": run.id,
        "runtime_vm_instance_id": run.instance_id,
        "playbook": run.playbook,
        "playbook_id": run.playbook_id,
        "status": run.status,
        "approval_required": run.approval_required,
        "approval_state": run.approval_state,
        "approval_decided_at": run.approval_decided_at,
        "approval_decided_by": run.approval_decided_by,
        "approval_notes": run.approval_notes,
        "approvals_required": run.approvals_required,
        "approvals_given": run.approvals_given,
        "requested_by": run.requested_by,
        "assigned_owner_id": run.assigned_owner_id,
        "sla_deadline": run.sla_deadline,
        "sla_breached": run.sla_breached_at is not None,
        "sla_breached_at": run.sla_breached_at,
        "automation_payload": run.automation_payload,
        "metadata": run.metadata,
        "playbook_snapshot": run.playbook_snapshot,
        "content_sha256": run.content_sha256,
        "priority": run.priority,
        "not_before": run.not_before,
        "result": run.result,
        "failure_reason": run.failure_reason,
        "last_error": run.last_error,
        "attempt": run.attempt,
        "queued_at": run.queued_at,
        "started_at": run.started_at,
        "completed_at": run.completed_at,
        "cancelled_at": run.cancelled_at,
        "cancellation_reason": run.cancellation_reason,
        "version": run.version,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
    }


def log_view(line: LogLine) -> View:
    """Show one line that a run printed, as its log lists it."""
    return {
        "seq": line.seq,
        "timestamp": line.at,
        "stream": line.stream,
        "message": line.message,
    }


def artifact_view(artifact: Artifact) -> View:
    """Show what a run left behind, without its content."""
    return {
        "id": artifact.id,
        "run_id": artifact.run_id,
        "artifact_type": artifact.artifact_type,
        "name": artifact.metadata.get("name"),
        "uri": artifact.uri,
        "media_type": artifact.media_type,
        "sha256": artifact.sha256,
        "size": artifact.size,
        "metadata": artifact.metadata,
        "recorded_by": artifact.recorded_by,
        "created_at": artifact.created_at,
    }


def certification_view(standing: Standing, now: datetime) -> View:
    """Show a certification, its plan, and the trust that it stands on."""
    row, job = standing.certification, standing.job
    return {
        "id": row.id,
        "artifact_id": row.artifact_id,
        "server_id": row.server_id,
        "tier": row.tier,
        "policy_requirement": row.policy_requirement,
        "manifest_digest": row.manifest_digest,
        "status": row.status,
        "valid_from": row.valid_from,
        "valid_until": row.valid_until,
        "refresh_cadence_seconds": row.cadence_s,
        "next_refresh_at": row.next_refresh_at,
        "governance_notes": row.governance_notes,
        "blocked_reason": row.blocked_reason,
        "evidence_source": row.evidence_source,
        "last_attestation_status": row.last_attestation_status,
        "fallback_launched_at": row.fallback_launched_at,
        "vm_instance_id": standing.instance_id,
        "attestation_status": standing.attestation_status,
        "lifecycle_state": standing.lifecycle,
        "remediation_attempts": standing.attempts,
        "freshness_deadline": standing.freshness_deadline,
        "stale": is_stale(standing.freshness_deadline, now),
        "provenance_ref": standing.provenance_ref,
        "refresh": None
        if job is None
        else {
            "id": job.id,
            "status": job.status,
            "attempts": job.attempts,
            "not_before": job.not_before,
        },
        "version": row.version,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def lineage_view(standing: Standing, refreshes: Sequence[Refresh]) -> View:
    """Show where a certification's evidence comes from."""
    row = standing.certification
    return {
        "id": row.id,
        "server_id": row.server_id,
        "tier": row.tier,
        "status": row.status,
        "manifest_digest": row.manifest_digest,
        "evidence": row.evidence,
        "evidence_source": row.evidence_source,
        "evidence_lineage": row.evidence_lineage,
        "provenance_ref": standing.provenance_ref,
        "valid_from": row.valid_from,
        "valid_until": row.valid_until,
        "refreshes": [
            {
                "id": one.id,
                "status": one.status,
                "attempts": one.attempts,
                "last_error": one.last_error,
                "created_at": one.created_at,
                "finished_at": one.finished_at,
            }
            for one in refreshes
        ],
        "version": row.version,
    }


def score_view(row: CapabilityScore) -> View:
    """Show one capability's score with every term of it."""
    return {
        "id": row.id,
        "server_id": row.server_id,
        "capability": row.capability,
        "backend": row.backend,
        "tier": row.tier,
        "score": row.score,
        "status": row.status,
        "confidence": row.confidence,
        "notes": row.notes,
        "evidence": row.evidence,
        "last_observed_at": row.last_observed_at,
    }
