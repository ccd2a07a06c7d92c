"""Whatever is sent to whatever takes a document: never a fault of ours."""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fix_runtime import Served
from tests.http.conftest import CLOUD, still_instance

RUNS = "/api/trust/remediation/runs"
PLAYBOOKS = "/api/trust/remediation/playbooks"

EDGES = st.sampled_from(
    [
        *(0, -1, 1, 2**31, 2**53, 2**62, 2**63, -(2**63), 2**64, 1e308, -0.0),
        *("", "\0", "\ud800", "x" * 501, "secret:X", "remediation:none", "restored"),
        *("2030-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "approved", "tpm"),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | EDGES,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)

BODIES: dict[str, dict[str, Any]] = {
    "POST {vm}/transition": {
        "attestation_status": "unknown",
        "lifecycle_state": "suspect",
        "remediation_state": "monitor",
        "remediation_attempts": 1,
        "freshness_deadline": "2020-01-01T00:00:00Z",
        "provenance_ref": "x",
        "provenance": {},
        "transition_reason": "x",
        "metadata": {},
        "expected_version": 1,
        "override": False,
    },
    "POST {vm}/release": {"reason": "x", "expected_version": 1},
    f"POST {PLAYBOOKS}": {
        "playbook_key": "x",
        "display_name": "x",
        "executor_type": "cloud_api",
        "description": "x",
        "approval_required": True,
        "sla_duration_seconds": 60,
        "metadata": CLOUD,
        "shared": False,
    },
    "PATCH {playbook}": {
        "display_name": "x",
        "executor_type": "shell",
        "description": None,
        "approval_required": True,
        "sla_duration_seconds": 60,
        "metadata": {"command": ["true"], "env": {}, "args": [], "on_lost": "fail"},
        "expected_version": 1,
    },
    f"POST {RUNS}": {
        "runtime_vm_instance_id": 1,
        "playbook": "fuzz",
        "metadata": {"accelerators": [{"id": "a"}], "policy_feedback": [], "tags": []},
        "automation_payload": {},
        "assigned_owner_id": None,
    },
    "POST {run}/approval": {
        "new_state": "rejected",
        "approval_notes": "x",
        "expected_version": 99,
        "content_sha256": "0" * 64,
    },
    "POST {run}/cancel": {"reason": "x"},
    "POST {run}/retry": {},
    "POST /api/servers": {
        "name": "x",
        "server_type": "x",
        "config": {
            "vm": {"image": "demo", "memory_mib": 64, "isolation_tier": "standard"},
            "attestation": {"kind": "tpm", "source": "agent"},
            "certification": {"tier": "x"},
        },
    },
    "POST {server}/release": {"reason": "x"},
    "POST /api/session": {"token": "x"},
    "POST /api/attestation/tokens": {
        "runtime_vm_instance_id": 1,
        "ttl_seconds": 60,
        "boot": "any",
    },
    "POST /api/attestation/keys": {
        "runtime_vm_instance_id": 1,
        "tpmt_public": "ACMACwAFBHIAAA==",
        "endorser": "swtpm",
    },
    "POST /api/attestation/policies": {
        "name": "fuzz",
        "document": {"max_age_s": 60, "kinds": {"tpm": {"pcrs": {"7": ["00"]}}}},
        "owner_id": None,
        "image": "x",
        "tier": "sev",
        "note": "x",
    },
    "POST /api/attestation/references": {
        "name": "fuzz",
        "document": {"kind": "tpm", "values": {"pcr-7": ["00" * 32]}},
        "image": "x",
    },
    "POST /api/attestation/policies/dry-run": {
        "document": {"kinds": {"amd-sev-snp": {"min_tcb": {"Milan": {"bl": 1}}}}},
        "image": "x",
        "state": "active",
    },
    "POST /api/attestation/references/1/deprecate": {
        "until": "2030-01-01T00:00:00Z",
        "expected_version": 1,
    },
}


@dataclass
class Target:
    """Things of one admin that the paths name, and a connection to the runtime."""

    runtime: Served
    token: str
    paths: dict[str, str]
    said_before: int = 0

    def send(self, method: str, path: str, body: bytes) -> int:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.runtime.port, timeout=20
        )
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Content-Type": "application/json",
        }
        try:
            connection.request(method, path.format(**self.paths), body, headers)
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="module")
def target(runtime: Served) -> Target:
    admin = runtime.newcomer()
    vm = still_instance(runtime, admin)
    found = Target(runtime, runtime.token(admin, "admin"), {}, len(runtime.log()))
    draft = {**BODIES[f"POST {PLAYBOOKS}"], "playbook_key": "fuzz"}
    assert found.send("POST", PLAYBOOKS, json.dumps(draft).encode()) == 200
    enqueue = {"runtime_vm_instance_id": vm.id, "playbook": "fuzz"}
    assert found.send("POST", RUNS, json.dumps(enqueue).encode()) == 200
    ((playbook, run),) = runtime.rows(
        "SELECT playbook_id, id FROM runtime_vm_remediation_runs "
        "WHERE runtime_vm_instance_id = %s",
        vm.id,
    )
    found.paths.update(
        vm=vm.path,
        server=f"/api/servers/{vm.server_id}",
        playbook=f"{PLAYBOOKS}/{playbook}",
        run=f"{RUNS}/{run}",
    )
    return found


def _changed(valid: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """Return a body that is right but for a few fields, on some level."""
    body = {name: _copy(value) for name, value in valid.items()}
    for _ in range(data.draw(st.integers(1, 3))):
        inner = body
        while True:
            name = data.draw(st.sampled_from([*inner, "strange"]) | st.text())
            if isinstance(inner.get(name), dict) and data.draw(st.booleans()):
                inner = inner[name]
                continue
            inner[name] = data.draw(VALUES)
            break
    return body


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("route", BODIES)
@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_no_document_is_a_fault_of_ours(
    target: Target, route: str, data: st.DataObject
) -> None:
    method, path = route.split(" ")
    body = _changed(BODIES[route], data)

    status = target.send(method, path, json.dumps(body).encode())

    assert status < 500, body


@settings(max_examples=60)
@given(raw=st.binary(max_size=200) | st.text().map(str.encode))
def test_no_bytes_are_a_fault_of_ours(target: Target, raw: bytes) -> None:
    assert target.send("POST", "/api/servers", raw) < 500


QUERIES = (
    "/api/trust/registry",
    "/api/trust/registry/stream",
    "/api/trust/remediation/runs",
    "/api/trust/remediation/stream",
    "/api/servers",
)
NAMES = ("server_id", "lifecycle_state", "stale", "limit", "cursor", "playbook")


@settings(max_examples=60)
@given(
    path=st.sampled_from(QUERIES),
    query=st.dictionaries(
        st.sampled_from((*NAMES, "status", "last_event_id", "after")) | st.text(),
        st.text() | EDGES.map(str),
        min_size=1,
        max_size=3,
    ),
)
def test_no_query_is_a_fault_of_ours(
    target: Target, path: str, query: dict[str, str]
) -> None:
    asked = urlencode(query, errors="surrogatepass")

    status = target.send("GET", f"{path}?{asked}".replace("{", "%7B"), b"")

    assert status < 500


def test_nothing_was_logged_as_a_bug(target: Target) -> None:
    """Last in this file: what came before left no trace of a fault."""
    log = target.runtime.log()[target.said_before :]

    assert "http.bug" not in log
    assert "Traceback" not in log
