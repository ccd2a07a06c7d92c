"""The JSON shape of each value, shared by REST and the streams."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from trustfabric.db.trust import Posture
from trustfabric.db.vms import Instance
from trustfabric.domain.events import TrustEvent
from trustfabric.domain.servers import Server
from trustfabric.domain.trust import is_stale
from trustfabric.supervision import ActorReport

View = Mapping[str, Any]


def posture_view(posture: Posture, now: datetime) -> View:
    """A registry row as lists, details and transitions answer it."""
    row = posture.snapshot
    return {
        "server_id": row.server_id,
        "server_name": posture.server_name,
        "vm_instance_id": row.instance_id,
        "instance_id": posture.instance_name,
        "attestation_status": row.attestation_status,
        "lifecycle_state": row.lifecycle,
        "remediation_state": row.remediation_state,
        "remediation_attempts": row.remediation_attempts,
        "freshness_deadline": row.freshness_deadline,
        "provenance_ref": row.provenance_ref,
        "provenance": row.provenance,
        "version": row.version,
        "updated_at": row.updated_at,
        "stale": is_stale(row.freshness_deadline, now),
    }


def trust_event_view(event: TrustEvent, now: datetime, *, provenance: bool) -> View:
    """A transition as the trust stream tells it."""
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
    """A transition as the history endpoint lists it."""
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
    """A server as its owner sees it."""
    return {
        "id": server.id,
        "owner_id": server.owner_id,
        "name": server.name,
        "server_type": server.server_type,
        "status": server.status,
        "config": server.config,
        "created_at": server.created_at,
        "updated_at": server.updated_at,
    }


def instance_view(
    instance: Instance, posture: Posture, latest: TrustEvent | None, now: datetime
) -> dict[str, Any]:
    """An instance with its trust badges, as `/api/servers/{id}/vm` lists it."""
    row = posture.snapshot
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


def actor_view(report: ActorReport) -> View:
    """One line of the supervision tree."""
    return report.view()
