"""The ansible executor on real playbooks, through ansible-runner, on this host."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.drivers.executor_benches import (
    SECRET,
    AnsibleBench,
    _play,
    _shell,
    a_workplace,
    run,
)
from tests.drivers.test_shell import Log, a_job
from trustfabric.domain.executors import ExitStatus
from trustfabric.domain.failures import FailureReason
from trustfabric.drivers.ansible import AnsibleExecutor
from trustfabric.drivers.ansible_host import NOT_INSTALLED

pytestmark = pytest.mark.slow


@pytest.fixture
def bench() -> Iterator[AnsibleBench]:
    with a_workplace() as workplace:
        yield AnsibleBench(workplace)


def events_of(status: ExitStatus) -> Any:
    (found,) = [f for f in status.files if f.artifact_type == "ansible-events"]
    return orjson.loads(found.content)


def debug(text: str) -> dict[str, Any]:
    return {"name": "tell", "ansible.builtin.debug": {"msg": text}}


async def test_its_events_are_lines_artifacts_and_a_result(bench: AnsibleBench) -> None:
    status, log = await run(
        bench,
        _play(
            {"name": "change", "ansible.builtin.command": "id -u", "register": "who"},
            {
                "name": "keep",
                "ansible.builtin.copy": {
                    "content": "proof",
                    "dest": "{{ lookup('env', 'TRUSTFABRIC_OUTPUT_DIR') }}/proof.txt",
                },
            },
            {"name": "skip", "ansible.builtin.command": "false", "when": False},
            {"ansible.builtin.set_stats": {"data": {"uid": "{{ who.stdout }}"}}},
        ),
    )

    assert (status.code, status.message) == (0, "done on localhost"), log.events
    told = [(t["task"], t["host"], t["status"]) for t in events_of(status)["tasks"]]
    assert told[:3] == [
        ("change", "localhost", "changed"),
        ("keep", "localhost", "changed"),
        ("skip", "localhost", "skipped"),
    ]
    assert any("TASK [change]" in line for line in log.lines())
    assert "changed: [localhost]" in log.lines()
    assert status.detail["stats"]["changed"] == {"localhost": 2}
    assert int(status.detail["output"]["uid"]) != 0 or os.geteuid() != 0
    assert [f.content for f in status.files if f.name == "proof.txt"] == [b"proof"]


async def test_run_data_and_secrets_are_never_templates(bench: AnsibleBench) -> None:
    job_text = "{{7*7}} $(id)"  # what a_job's payload says
    status, log = await run(
        bench,
        _play(
            debug("{{ trustfabric.payload.text }} {{ trustfabric.instance_id + 1 }}"),
            {
                "ansible.builtin.assert": {
                    "that": ["password | length == 20", "tree.deep[0] == password"]
                }
            },
            extra_vars={"password": "secret:db", "tree": {"deep": ["secret:db"]}},
        ),
    )

    assert status.failure_reason is None, log.events
    assert f'    "msg": "{job_text} 3"' in log.lines()
    assert SECRET not in repr(log.events)


async def test_secrets_are_on_no_command_line(bench: AnsibleBench) -> None:
    all_lines = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'"
    status, log = await run(
        bench,
        _play(
            _shell(f"{all_lines} | grep -c '[h]unter2-' || true"),
            debug("secrets: {{ said.stdout }}"),
            _shell(f"{all_lines} | grep -c '[a]nsible-playbook'"),
            debug("others: {{ said.stdout | int > 0 }}"),
            extra_vars={"password": "secret:db"},
        ),
    )

    assert status.failure_reason is None, log.events
    assert '    "msg": "secrets: 0"' in log.lines()
    assert '    "msg": "others: True"' in log.lines()


async def test_hosts_tags_and_limits_are_the_playbooks(bench: AnsibleBench) -> None:
    local = {"ansible_connection": "local"}
    status, log = await run(
        bench,
        _play(
            {**debug("{{ inventory_hostname }} of {{ zone }}"), "tags": ["tell"]},
            {**debug("not this"), "tags": ["other"]},
            inventory={
                "all": {"hosts": {"a": local, "b": local}, "vars": {"zone": "z1"}}
            },
            limit="b",
            tags=["tell"],
        ),
    )

    assert status.message == "done on b", log.events
    assert '    "msg": "b of z1"' in log.lines()
    assert not any("not this" in line for line in log.lines())


@pytest.mark.parametrize(
    ("spec", "reason", "said"),
    [
        (
            _play(
                _shell("true"), inventory="away ansible_host=127.0.0.1 ansible_port=1"
            ),
            FailureReason.TRANSIENT_INFRASTRUCTURE,
            "could not reach away",
        ),
        (
            _play(
                {
                    "ansible.builtin.command": "false",
                    "when": "inventory_hostname == 'l'",
                },
                {"ansible.builtin.ping": {}},
                inventory=(
                    "away ansible_host=127.0.0.1 ansible_port=1\n"
                    "l ansible_connection=local\n"
                ),
            ),
            FailureReason.EXECUTION_FAILURE,
            "failed on l",
        ),
        (
            _play({"no.such.module": {"a": 1}}),
            FailureReason.PLAYBOOK_BUG,
            "could not run the playbook",
        ),
        (
            {"playbook": [{"hosts": "nobody_here", "tasks": []}]},
            FailureReason.PLAYBOOK_BUG,
            "no host matched",
        ),
        (
            {"project_dir": "/nonexistent-project"},
            FailureReason.PLAYBOOK_BUG,
            "",
        ),
    ],
    ids=["unreachable", "failed-and-unreachable", "module", "no-host", "project"],
)
async def test_how_it_ends_names_the_reason(
    bench: AnsibleBench, spec: dict[str, Any], reason: FailureReason, said: str
) -> None:
    status, log = await run(bench, spec)

    assert status.failure_reason is reason, (status, log.events)
    assert said in status.message


async def test_a_failure_that_a_play_ignores_is_no_failure(bench: AnsibleBench) -> None:
    status, _ = await run(
        bench, _play({**_shell("false"), "ignore_errors": True}, debug("on"))
    )

    assert status.failure_reason is None
    assert events_of(status)["tasks"][0]["ignored"] is True


async def test_without_the_extra_there_is_no_executor_and_the_extra_is_named(
    bench: AnsibleBench,
) -> None:
    """The system's Python has no ansible-runner."""
    executor = AnsibleExecutor(bench.workplace, python="/usr/bin/python3")

    status = await executor.execute(
        a_job(**_play(debug("x"))), Log().emit, asyncio.Event()
    )

    assert status.failure_reason is FailureReason.EXECUTOR_UNAVAILABLE, status
    assert "trustfabric[ansible]" in status.message
    assert NOT_INSTALLED == 69


async def test_an_interpreter_that_is_not_there_is_no_executor(
    bench: AnsibleBench,
) -> None:
    executor = AnsibleExecutor(bench.workplace, python="/nowhere/bin/python3")

    status = await executor.execute(
        a_job(**_play(debug("x"))), Log().emit, asyncio.Event()
    )

    assert status.failure_reason is FailureReason.EXECUTOR_UNAVAILABLE, status


async def test_a_missing_secret_is_the_playbooks_fault(bench: AnsibleBench) -> None:
    status, _ = await run(bench, _play(debug("x"), ssh_key="secret:absent"))

    assert status.failure_reason is FailureReason.PLAYBOOK_BUG
    assert "absent" in status.message


async def test_nothing_of_it_outlives_it(bench: AnsibleBench) -> None:
    status, _ = await run(bench, _play(_shell("(setsid sleep 60 >/dev/null 2>&1 &)")))

    assert status.failure_reason is None
    assert bench.left() == []
    assert list(bench.workplace.settings.root.iterdir()) == []


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
async def test_in_the_sandbox_of_a_runtime_that_is_not_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with a_workplace(unsandboxed=False) as workplace:
        (workplace.settings.hidden / "jwt-secret").write_text("x")
        secret = workplace.settings.hidden / "jwt-secret"

        status, log = await run(
            AnsibleBench(workplace),
            _play(_shell(f"! test -e {secret} && ! touch /etc/x"), debug("shut")),
        )

    assert status.failure_reason is None, log.events
    assert '    "msg": "shut"' in log.lines()
