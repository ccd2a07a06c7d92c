"""Holds, the breaker and why: what is asked for, and how the answers are shown."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Mcpctl
from tests.cli.host import Host

HOLDS = "/api/trust/holds"
BREAKER = "/api/trust/remediation/breaker"
INCIDENT = {
    "id": 1,
    "scope": "owner",
    "owner_id": 7,
    "state": "open",
    "opened_at": "2026-01-01T00:00:00.5Z",
    "summary": "30 of 50 living VMs of owner 7 were quarantined",
    "quarantined": 30,
    "living": 50,
    "common": [
        {
            "trait": "image",
            "value": "bad\x1b[2J",
            "affected": 30,
            "affected_total": 30,
            "rest": 0,
            "rest_total": 20,
        }
    ],
}


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (
            "12 --for 60",
            {"scope": "instance", "runtime_vm_instance_id": 12, "for_seconds": 60.0},
        ),
        ("--owner 7", {"scope": "owner", "owner_id": 7}),
        ("--mine", {"scope": "owner"}),
        (
            "--all --until 2026-12-01T06:00:00Z",
            {"scope": "all", "until": "2026-12-01T06:00:00Z"},
        ),
    ],
)
async def test_a_hold_names_its_scope(
    host: Host, mcpctl: Mcpctl, line: str, body: dict[str, Any]
) -> None:
    host.answers("POST", HOLDS, {"id": 3, "scope": body["scope"]}, status=201)

    done = await mcpctl("trust", "hold", *line.split(), "--reason", "because")

    assert (done.code, done.out) == (0, f"hold 3, {body['scope']}\n")
    assert host.last("POST", HOLDS).body == {**body, "reason": "because"}


@pytest.mark.parametrize("line", ["", "12 --mine", "--mine --until x --for 5"])
async def test_a_hold_on_nothing_or_two_things_is_no_usage(
    mcpctl: Mcpctl, line: str
) -> None:
    done = await mcpctl("trust", "hold", *line.split(), "--reason", "because")

    assert done.code == 2


async def test_holds_in_force_are_listed_and_all_on_wish(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("GET", HOLDS, [])

    await mcpctl("trust", "holds")
    assert host.last("GET", HOLDS).query["state"] == "in-force"
    await mcpctl("trust", "holds", "--state", "any", "--instance-id", "4")

    assert host.last("GET", HOLDS).query == {
        "limit": "100",
        "runtime_vm_instance_id": "4",
    }


async def test_a_released_hold_is_shown_as_it_is_then(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("DELETE", f"{HOLDS}/3", None, status=204)
    host.answers("GET", f"{HOLDS}/3", {"id": 3, "state": "released"})

    done = await mcpctl("trust", "release-hold", "3", "--reason", "done")

    assert (done.code, done.out) == (0, "hold 3, released\n")
    assert host.last("DELETE", f"{HOLDS}/3").query == {"reason": "done"}


async def test_the_breaker_is_shown_with_what_its_vms_have_in_common(
    host: Host, mcpctl: Mcpctl
) -> None:
    limits = {"minimum": 5, "percent": 20.0, "window_seconds": 600.0}
    shown = {"state": "open", "limits": limits, "incidents": [INCIDENT]}
    host.answers("GET", BREAKER, {**shown, "quarantined_in_window": 30})

    done = await mcpctl("remediation", "breaker")

    first, second, header, row = done.out.splitlines()
    assert first.startswith("breaker open: 30 quarantined within 600.0 s")
    assert "30 of 50 living VMs" in second
    assert header.split()[:2] == ["IN", "COMMON"]
    assert row.split()[0] == "image"
    assert "\x1b" not in done.out


async def test_the_breaker_is_released_with_a_reason(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("POST", f"{BREAKER}/release", {"released": [INCIDENT]})

    done = await mcpctl(
        *("remediation", "release-breaker", "--reason", "ok", "--incident", "1")
    )

    assert (done.code, done.out) == (0, "released: 1\n")
    body = {"reason": "ok", "incident_id": 1}
    assert host.last("POST", f"{BREAKER}/release").body == body


async def test_incidents_are_listed(host: Host, mcpctl: Mcpctl) -> None:
    host.lists("/api/trust/incidents", [INCIDENT])

    done = await mcpctl("remediation", "incidents", "--open")

    assert "30 of 50" in done.out
    assert host.last("GET", "/api/trust/incidents").query["open"] == "true"


REASON = {
    "about": "trust",
    "code": "lifecycle-quarantined",
    "text": "it is quarantined: pcr 8 differs",
    "blocks": True,
    "source": "history:12",
    "age_seconds": 7300,
    "next": [{"command": "mcpctl trust release 7 --reason TEXT"}],
}


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("why 7", "/api/trust/registry/7/why"),
        ("trust why 7", "/api/trust/registry/7/why"),
        ("servers why 3", "/api/servers/3/why"),
    ],
)
async def test_why_is_a_table_of_reasons_and_what_would_clear_them(
    host: Host, mcpctl: Mcpctl, line: str, path: str
) -> None:
    answer = {
        "vm_instance_id": 7,
        "server_id": 3,
        "server_name": "web",
        "lifecycle_state": "quarantined",
        "attestation_status": "untrusted",
        "remediation_state": "remediation:held",
        "trusted": False,
        "placeable": False,
        "reasons": [REASON, REASON],
    }
    host.answers("GET", path, answer)

    done = await mcpctl(*line.split())
    as_json = await mcpctl(*line.split(), "--json")

    lines = done.out.splitlines()
    assert lines[:2] == [
        "instance 7 of server web (3): quarantined, untrusted, remediation:held",
        "not trusted, may not be launched",
    ]
    assert "2 h" in lines[3]
    assert lines[-2:] == [
        "what would clear it:",
        "  mcpctl trust release 7 --reason TEXT",
    ]
    assert json.loads(as_json.out) == answer


async def test_where_all_is_well_why_says_so(host: Host, mcpctl: Mcpctl) -> None:
    path = "/api/trust/registry/7/why"
    host.answers("GET", path, {"trusted": True, "placeable": True, "reasons": []})

    done = await mcpctl("why", "7")

    assert done.out.splitlines()[1:] == ["trusted, may be launched"]
