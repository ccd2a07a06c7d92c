"""Each command asks the host for what the contract says, and shows the answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Mcpctl
from tests.cli.host import Answer, Asked, Host, registry_row, run_row

TRANSITION = "/api/trust/registry/7/transition"
RUN = "/api/trust/remediation/runs/42"
PLAYBOOKS = "/api/trust/remediation/playbooks"

COMMANDS: list[tuple[str, str, str, Any]] = [
    ("trust get 7", "GET", "/api/trust/registry/7", None),
    ("trust why 7", "GET", "/api/trust/registry/7/why", None),
    (
        "trust release 7 --reason checked --expected-version 4",
        "POST",
        "/api/trust/registry/7/release",
        {"reason": "checked", "expected_version": 4},
    ),
    ("remediation playbooks get 2", "GET", f"{PLAYBOOKS}/2", None),
    (
        (
            "remediation playbooks create fix --executor shell --no-approval "
            '--sla-seconds 60 --metadata {"command":["true"]} --shared --owner 9'
        ),
        "POST",
        PLAYBOOKS,
        {
            "playbook_key": "fix",
            "display_name": "fix",
            "executor_type": "shell",
            "approval_required": False,
            "sla_duration_seconds": 60,
            "metadata": {"command": ["true"]},
            "shared": True,
            "owner_id": 9,
        },
    ),
    (
        "remediation playbooks update 2 --name N --unset-sla --expected-version 3",
        "PATCH",
        f"{PLAYBOOKS}/2",
        {"display_name": "N", "sla_duration_seconds": None, "expected_version": 3},
    ),
    ("remediation runs get 42", "GET", RUN, None),
    ("remediation runs retry 42", "POST", f"{RUN}/retry", {}),
    ("remediation runs cancel 42", "POST", f"{RUN}/cancel", {}),
    (
        "remediation runs cancel 42 --reason wrong",
        "POST",
        f"{RUN}/cancel",
        {"reason": "wrong"},
    ),
    (
        "remediation runs reject 42 --version 3 --notes no",
        "POST",
        f"{RUN}/approval",
        {"new_state": "rejected", "expected_version": 3, "approval_notes": "no"},
    ),
    (
        "remediation runs approve 42 --state rejected --version 3",
        "POST",
        f"{RUN}/approval",
        {"new_state": "rejected", "expected_version": 3},
    ),
    ("evaluations status 5", "GET", "/api/evaluations/5/status", None),
    ("evaluations lineage 5", "GET", "/api/evaluations/5/lineage", None),
    ("evaluations retry 5", "POST", "/api/evaluations/5/retry", {}),
    (
        (
            "evaluations plan 5 --cadence-seconds 60 --unset-next-refresh --note n "
            '--source ["a"] --unset-lineage'
        ),
        "PATCH",
        "/api/evaluations/5/status",
        {
            "refresh_cadence_seconds": 60,
            "next_refresh_at": None,
            "governance_notes": "n",
            "evidence_source": ["a"],
            "evidence_lineage": None,
        },
    ),
    ("servers get 3", "GET", "/api/servers/3", None),
    ("servers start 3", "POST", "/api/servers/3/start", {}),
    ("servers stop 3", "POST", "/api/servers/3/stop", {}),
    ("servers redeploy 3", "POST", "/api/servers/3/redeploy", {}),
    ("servers attest 3", "POST", "/api/servers/3/vm/attest", {}),
    (
        "servers release 3 --reason checked",
        "POST",
        "/api/servers/3/release",
        {"reason": "checked"},
    ),
    ("servers vm 3", "GET", "/api/servers/3/vm", None),
    ("system actors", "GET", "/api/system/actors", None),
    (
        "system kill fabric/vms/vm:7",
        "POST",
        "/api/system/actors/fabric/vms/vm:7/kill",
        {},
    ),
]


@pytest.mark.parametrize(
    ("line", "method", "path", "body"), COMMANDS, ids=[row[0] for row in COMMANDS]
)
async def test_a_command_asks_for(
    host: Host, mcpctl: Mcpctl, line: str, method: str, path: str, body: Any
) -> None:
    host.answers(method, path, {"id": 1, "status": "x"})

    done = await mcpctl(*line.split(), "--json")
    shown = await mcpctl(*line.split())

    assert (done.code, shown.code) == (0, 0)
    assert json.loads(done.out) == {"id": 1, "status": "x"}
    assert host.last(method, path).body == body


@pytest.mark.parametrize(
    ("line", "path", "query"),
    [
        (
            (
                "trust registry --server-id 3 --lifecycle RESTORED"
                " --status trusted --stale"
            ),
            "/api/trust/registry",
            {
                "server_id": "3",
                "lifecycle_state": "restored",
                "attestation_status": "trusted",
                "stale": "true",
            },
        ),
        ("trust registry --fresh", "/api/trust/registry", {"stale": "false"}),
        (
            (
                "remediation runs list --instance-id 7 --status failed "
                "--approval-state approved --playbook fix"
            ),
            "/api/trust/remediation/runs",
            {
                "runtime_vm_instance_id": "7",
                "status": "failed",
                "approval_state": "approved",
                "playbook": "fix",
            },
        ),
        ("remediation playbooks list", PLAYBOOKS, {}),
        ("evaluations list", "/api/evaluations", {}),
        ("servers list", "/api/servers", {}),
    ],
)
async def test_a_list_asks_with_its_filters(
    host: Host, mcpctl: Mcpctl, line: str, path: str, query: dict[str, str]
) -> None:
    host.answers("GET", path, [])

    done = await mcpctl(*line.split(), "--json", "--limit", "50")

    assert (done.code, done.out) == (0, "[]\n")
    assert host.last("GET", path).query == query | {"limit": "50"}


async def test_a_table_has_a_row_a_line_and_no_empty_columns(
    host: Host, mcpctl: Mcpctl
) -> None:
    long = "x" * 300
    host.lists(
        "/api/trust/registry", [registry_row(1), registry_row(2, server_name=long)]
    )

    done = await mcpctl("trust", "registry")

    header, first, second = done.out.splitlines()
    assert header.split()[:3] == ["INSTANCE", "SERVER", "NAME"]
    assert first.split()[:4] == ["1", "3", "web", "restored"]
    assert "2026-01-01T00:00:00Z" in first
    assert long in second


async def test_nothing_to_list_is_said_aside(host: Host, mcpctl: Mcpctl) -> None:
    host.lists("/api/servers", [])

    done = await mcpctl("servers", "list")

    assert (done.code, done.out) == (0, "")
    assert "nothing" in done.err


async def test_history_goes_over_pages_up_to_its_limit(
    host: Host, mcpctl: Mcpctl
) -> None:
    path = "/api/trust/registry/7/history"

    def reply(asked: Asked) -> Answer:
        start = int(asked.query.get("cursor", "0"))
        events = [{"registry_version": 500 - n} for n in range(start, start + 100)]
        link = f'<{path}?limit=100&cursor={start + 100}>; rel="next"'
        about = {"server_id": 3, "server_name": "web", "instance_id": "vm-7"}
        return Answer(about | {"events": events}, headers={"Link": link})

    host.replies["GET", path] = reply

    done = await mcpctl("trust", "history", "7", "--limit", "150", "--json")

    document = json.loads(done.out)
    assert document["server_name"] == "web"
    versions = [event["registry_version"] for event in document["events"]]
    assert versions == [500 - n for n in range(150)]


async def test_a_transition_is_based_on_the_version_just_read_and_says_so(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("GET", "/api/trust/registry/7", registry_row(version=4))
    host.answers("POST", TRANSITION, registry_row(version=5))

    done = await mcpctl(
        *("trust", "transition", "7", "--lifecycle", "quarantined", "--reason", "odd"),
        "--json",
    )

    assert host.last("POST", TRANSITION).body == {
        "attestation_status": "trusted",
        "lifecycle_state": "quarantined",
        "transition_reason": "odd",
        "expected_version": 4,
    }
    assert "version 4" in done.err
    assert json.loads(done.out)["version"] == 5


async def test_a_transition_sends_the_version_it_was_given_as_it_is(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.refuses(
        *("POST", TRANSITION, 409, "version-conflict"),
        expected_version=1,
        current_version=4,
    )

    done = await mcpctl(
        *("trust", "transition", "7", "--status", "trusted", "--lifecycle", "restored"),
        *("--remediation-state", "remediation:none", "--remediation-attempts", "0"),
        *("--freshness-deadline", "2026-01-01T00:00:00Z", "--provenance-ref", "me"),
        *("--provenance", '{"by": "hand"}', "--metadata", '{"k": 1}', "--override"),
        *("--reason", "checked", "--expected-version", "1"),
    )

    assert done.code == 5
    assert "expected version 1, current version 4" in done.err
    [asked] = host.asked
    assert asked.body == {
        "attestation_status": "trusted",
        "lifecycle_state": "restored",
        "remediation_state": "remediation:none",
        "remediation_attempts": 0,
        "freshness_deadline": "2026-01-01T00:00:00Z",
        "provenance_ref": "me",
        "provenance": {"by": "hand"},
        "metadata": {"k": 1},
        "override": True,
        "transition_reason": "checked",
        "expected_version": 1,
    }


async def test_an_approval_is_based_on_the_version_just_read(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("GET", RUN, run_row(version=3))
    host.answers("POST", f"{RUN}/approval", run_row(version=4))

    done = await mcpctl("remediation", "runs", "approve", "42", "--notes", "ok")

    assert host.last("POST", f"{RUN}/approval").body == {
        "new_state": "approved",
        "expected_version": 3,
        "approval_notes": "ok",
    }
    assert "version 3" in done.err


async def test_a_playbook_is_deleted_at_its_version(host: Host, mcpctl: Mcpctl) -> None:
    host.answers("GET", f"{PLAYBOOKS}/2", {"id": 2, "version": 6})
    host.answers("DELETE", f"{PLAYBOOKS}/2", b"", 204)

    done = await mcpctl("remediation", "playbooks", "delete", "2")

    assert done.code == 0
    assert host.last("DELETE", f"{PLAYBOOKS}/2").query == {"expected_version": "6"}


async def test_enqueue_reads_json_from_a_file_and_sends_its_key(
    host: Host, mcpctl: Mcpctl, tmp_path: Path
) -> None:
    file = tmp_path / "payload.json"
    file.write_text('{"deep": [1, 2]}')
    path = "/api/trust/remediation/runs"
    host.answers("POST", path, {"created": True, "run": run_row()})

    done = await mcpctl(
        *("remediation", "runs", "enqueue", "7", "fix", "--payload", f"@{file}"),
        *("--metadata", '{"tag": "t"}', "--owner", "9", "--idempotency-key", "k1"),
    )

    asked = host.last("POST", path)
    assert asked.body == {
        "runtime_vm_instance_id": 7,
        "playbook": "fix",
        "automation_payload": {"deep": [1, 2]},
        "metadata": {"tag": "t"},
        "assigned_owner_id": 9,
    }
    assert asked.headers["Idempotency-Key"] == "k1"
    assert "queued run 42" in done.out


async def test_a_server_is_created_from_config_and_flags(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("POST", "/api/servers", {"id": 3, "name": "web"}, 201)

    done = await mcpctl(
        *("servers", "create", "web", "--type", "vm", "--image", "alpine"),
        *("--memory-mib", "512", "--vcpus", "2", "--isolation-tier", "sev-snp"),
        *("--attestation", "tpm", "--config", '{"vm": {"image": "x", "k": 1}, "t": 2}'),
        "--json",
    )

    vm = {"image": "alpine", "memory_mib": 512, "vcpu_count": 2}
    assert done.code == 0
    assert host.last("POST", "/api/servers").body == {
        "name": "web",
        "server_type": "vm",
        "config": {
            "vm": vm | {"isolation_tier": "sev-snp", "k": 1},
            "attestation": {"kind": "tpm"},
            "t": 2,
        },
    }


async def test_a_server_is_deleted(host: Host, mcpctl: Mcpctl) -> None:
    host.answers("DELETE", "/api/servers/3", b"", 204)

    done = await mcpctl("servers", "delete", "3", "--json")

    assert (done.code, json.loads(done.out)) == (0, {"id": 3, "deleted": True})


async def test_a_vm_view_shows_its_instances_as_a_table(
    host: Host, mcpctl: Mcpctl
) -> None:
    instance = {"id": 7, "trust_lifecycle_state": "quarantined", "stale": True}
    view = {"server_id": 3, "latest_status": "running", "instances": [instance]}
    host.answers("GET", "/api/servers/3/vm", view)

    done = await mcpctl("servers", "vm", "3")

    assert "latest_status  running" in done.out
    assert done.out.splitlines()[-1].split() == ["7", "quarantined", "yes"]


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"one\ntwo\x1b[2J\n", "one\ntwo\\x1b[2J\n"),
        ({"lines": ["one", {"line": "two"}]}, "one\ntwo\n"),
        (["one"], "one\n"),
    ],
)
async def test_console_lines_are_printed(
    host: Host, mcpctl: Mcpctl, body: Any, shown: str
) -> None:
    host.answers("GET", "/api/servers/3/vm/logs", body)

    done = await mcpctl("servers", "logs", "3", "--tail", "10")

    assert done.out == shown
    assert host.last("GET", "/api/servers/3/vm/logs").query == {"tail": "10"}


async def test_an_empty_console_says_why(host: Host, mcpctl: Mcpctl) -> None:
    body = {"lines": [], "why_empty": "the test driver has no console"}
    host.answers("GET", "/api/servers/3/vm/logs", body)

    done = await mcpctl("servers", "logs", "3")

    assert (done.code, done.out) == (0, "")
    assert "the test driver has no console" in done.err


async def test_the_log_of_a_run_is_followed_to_its_end_without_gap_or_double(
    host: Host, mcpctl: Mcpctl
) -> None:
    written = [
        {"seq": n, "stream": "stdout", "message": f"line {n}"} for n in range(1, 7)
    ]
    states = iter(["running", "running", "completed"])
    seen = iter([2, 2, 4, 4, 6, 6])

    def logs(asked: Asked) -> Answer:
        after, upto = int(asked.query["after"]), next(seen)
        return Answer([row for row in written[:upto] if row["seq"] > after])  # type: ignore[operator]

    host.replies["GET", f"{RUN}/logs"] = logs
    host.replies["GET", RUN] = lambda _: Answer(run_row(status=next(states)))

    done = await mcpctl("remediation", "runs", "logs", "42", "--follow", "--json")

    assert [json.loads(line) for line in done.out.splitlines()] == written


async def test_artifacts_are_listed_and_fetched(
    host: Host, mcpctl: Mcpctl, tmp_path: Path
) -> None:
    path = f"{RUN}/artifacts"
    host.lists(path, [{"id": 1, "artifact_type": "execution-log", "size": 3}])
    host.answers("GET", f"{path}/a%2Fb".replace("%2F", "/"), b"\x00\xff\x1b")
    target = tmp_path / "out"

    listed = await mcpctl("remediation", "runs", "artifacts", "42")
    fetched = await mcpctl(
        "remediation", "runs", "artifacts", "42", "a/b", "-o", str(target)
    )

    assert "execution-log" in listed.out
    assert fetched.code == 0
    assert target.read_bytes() == b"\x00\xff\x1b"


async def test_actors_come_as_a_list_or_as_a_tree(host: Host, mcpctl: Mcpctl) -> None:
    leaf = {"path": "fabric/trust", "state": "running", "restart_count": 1}
    tree = {
        "path": "fabric",
        "state": "running",
        "restart_count": 0,
        "children": [leaf],
    }
    host.answers("GET", "/api/system/actors", tree)

    done = await mcpctl("system", "actors")

    assert [line.split() for line in done.out.splitlines()[1:]] == [
        ["fabric", "running", "0"],
        ["fabric/trust", "running", "1"],
    ]


async def test_the_log_after_a_line_is_read_batch_by_batch(
    host: Host, mcpctl: Mcpctl
) -> None:
    written = [{"seq": n, "stream": "stdout", "message": "x"} for n in range(1, 21)]

    def logs(asked: Asked) -> Answer:
        after = int(asked.query["after"])
        return Answer(written[after : after + 6])

    host.replies["GET", f"{RUN}/logs"] = logs

    done = await mcpctl("remediation", "runs", "logs", "42", "--after", "5", "--json")

    seqs = [json.loads(line)["seq"] for line in done.out.splitlines()]
    assert seqs == list(range(6, 21))


@pytest.mark.parametrize(
    ("line", "method", "path", "body"),
    [
        ("trust registry", "GET", "/api/trust/registry", {}),
        ("trust registry", "GET", "/api/trust/registry", [1]),
        ("trust history 7", "GET", "/api/trust/registry/7/history", []),
        ("trust release 7 --reason x", "GET", "/api/trust/registry/7", {"a": 1}),
        ("remediation runs approve 42", "GET", RUN, [1]),
        ("remediation runs logs 42", "GET", f"{RUN}/logs", [{"seq": None}]),
        ("remediation runs logs 42 -f", "GET", RUN, None),
        ("servers vm 3", "GET", "/api/servers/3/vm", 7),
    ],
)
async def test_an_answer_of_another_shape_is_exit_code_1(
    host: Host, mcpctl: Mcpctl, line: str, method: str, path: str, body: Any
) -> None:
    host.answers(method, path, body)

    done = await mcpctl(*line.split())

    assert done.code == 1
    assert done.err.startswith("mcpctl: GET /api/")


async def test_a_next_page_that_is_the_same_page_ends_the_list(
    host: Host, mcpctl: Mcpctl
) -> None:
    def same(asked: Asked) -> Answer:
        link = '</api/servers?limit=100>; rel="next"'
        return Answer([{"id": 1}], headers={"Link": link})

    host.replies["GET", "/api/servers"] = same

    done = await mcpctl("servers", "list")

    assert done.code == 1
    assert "same page" in done.err


async def test_a_change_is_answered_with_what_is_now_on_one_line(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("GET", RUN, run_row(version=3))
    host.answers(
        "POST", f"{RUN}/approval", run_row(version=4, approval_state="approved")
    )

    done = await mcpctl("remediation", "runs", "approve", "42")

    assert done.out == "run 42, pending, approval approved, version 4\n"
