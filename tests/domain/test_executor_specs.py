"""Playbooks of ansible and cloud_api: what is wrong with them is said when saved."""

from typing import Any

import pytest

from trustfabric.domain.ansible_spec import read_ansible
from trustfabric.domain.cloud_spec import read_cloud
from trustfabric.domain.specs import ExecutorType, check_spec
from trustfabric.errors import InvalidError

PLAYS = [{"hosts": "all", "tasks": []}]
URL = "https://api.example.com/v1"


def test_plays_come_as_text_as_a_list_or_from_a_project() -> None:
    assert read_ansible({"playbook": PLAYS}).plays == PLAYS
    assert read_ansible({"playbook": "- hosts: all\n"}).plays == "- hosts: all\n"
    project = read_ansible({"project_dir": "/srv/plays"})
    assert (project.plays, project.entry) == (None, "site.yml")
    other = read_ansible({"project_dir": "/srv/plays", "playbook": "db/fix.yml"})
    assert other.entry == "db/fix.yml"


def test_tags_of_ansible_are_ansibles_to_read() -> None:
    read_ansible({"playbook": "- hosts: all\n  vars: {a: !unsafe '{{x}}'}\n"})


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"playbook": "- hosts: [\n"}, "metadata.playbook: not YAML, line 2"),
        ({"playbook": "hosts: all"}, "metadata.playbook: not a list of plays"),
        ({"playbook": [{"tasks": []}]}, r"metadata.playbook\[0\]: a play"),
        ({"playbook": ["x"]}, r"metadata.playbook\[0\]"),
        ({"playbook": []}, "metadata.playbook"),
        ({"playbook": " "}, "metadata.playbook: is empty"),
        ({"playbook": "x" * 600_000}, "metadata.playbook: longer"),
        ({"playbook": "[" * 20_000}, "metadata.playbook"),
        ({"project_dir": "plays"}, "metadata.project_dir: not an absolute"),
        ({"project_dir": "/p", "playbook": "../x.yml"}, "inside project_dir"),
        ({"project_dir": "/p", "playbook": "/etc/x.yml"}, "inside project_dir"),
        ({"project_dir": "/p", "playbook": "-e"}, "inside project_dir"),
        ({"project_dir": "/p", "playbook": "- hosts: all\n"}, "names a file"),
        ({"playbook": PLAYS, "inventory": 1}, "metadata.inventory"),
        ({"playbook": PLAYS, "extra_vars": []}, "metadata.extra_vars"),
        ({"playbook": PLAYS, "extra_vars": {"a-b": 1}}, "no variable's name"),
        ({"playbook": PLAYS, "extra_vars": {"trustfabric": 1}}, "the run's data"),
        ({"playbook": PLAYS, "limit": "--x"}, "metadata.limit"),
        ({"playbook": PLAYS, "limit": "@/etc/passwd"}, "metadata.limit"),
        ({"playbook": PLAYS, "tags": ["a", "-b"]}, "metadata.tags"),
        ({"playbook": PLAYS, "tags": 1}, "metadata.tags"),
        ({"playbook": PLAYS, "ssh_key": "key"}, "metadata.ssh_key"),
        ({"playbook": PLAYS, "env": {"TRUSTFABRIC_TOKEN": "x"}}, "metadata.env"),
        ({"playbook": PLAYS, "timeout_seconds": -1}, "metadata.timeout_seconds"),
    ],
)
def test_an_ansible_playbook_that_could_not_run_is_refused_by_name(
    metadata: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidError, match=field):
        check_spec(ExecutorType.ANSIBLE, metadata)


def test_a_bomb_of_aliases_costs_nothing() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )

    with pytest.raises(InvalidError, match="not a list of plays"):
        read_ansible({"playbook": bomb})


def test_a_request_has_what_operators_expect_unless_it_says_so() -> None:
    (step,) = read_cloud({"method": "get", "url": URL}).steps

    assert (step.request.method, step.request.idempotent) == ("GET", True)
    assert step.expect.statuses is None
    assert not read_cloud({"method": "POST", "url": URL}).steps[0].request.idempotent


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": "TRACE"}, "metadata.method"),
        ({"method": 1}, "metadata.method"),
        ({"url": "ftp://a/"}, "neither https nor http"),
        ({"url": "https:///x"}, "with a host"),
        ({"url": "https://u:p@a.b/"}, "credentials go into headers"),
        ({"url": "https://a.b/?k=secret:x"}, "a secret goes into headers"),
        ({"url": "https://${instance_name}.b/"}, "a host is not a matter"),
        ({"url": "https://a.b:${run_id}/"}, "metadata.url"),
        ({"url": "https://a.b/${nothing}"}, "is none of"),
        ({"url": "https://a.b/${payload/~2}"}, "metadata.url"),
        ({"url": "https://a.b/x#y"}, "a fragment"),
        ({"url": "https://a.b/ x"}, "metadata.url"),
        ({"url": "https://a.b\\@evil/"}, "metadata.url"),
        ({"url": "https://a.b:99999/"}, "metadata.url"),
        ({"url": "https://ä.b/"}, "metadata.url"),
        ({"headers": {"Host": "evil"}}, "metadata.headers.Host"),
        ({"headers": {"A B": "x"}}, "metadata.headers"),
        ({"headers": {"A": "x\r\nB: y"}}, "metadata.headers.A"),
        ({"headers": {"A": "x secret:y z"}}, "metadata.headers.A"),
        ({"headers": {"A": 1}}, "metadata.headers.A"),
        ({"body": {"a": ["${what}"]}}, r"metadata.body.a\[0\]"),
        ({"expect": {"status": 42}}, "metadata.expect.status"),
        ({"expect": {"status": []}}, "metadata.expect.status"),
        ({"expect": {"state": 1}}, "metadata.expect.state: unknown"),
        ({"expect": {"json": {"state": 1}}}, "metadata.expect.json.state"),
        ({"expect": {"json": {"/a": {"is": 1}}}}, "metadata.expect.json./a"),
        ({"expect": {"json": {"/a": {"in": []}}}}, "metadata.expect.json./a"),
        ({"expect": {"json": {"/a": {"exists": 1}}}}, "metadata.expect.json./a"),
        ({"expect": {"json": {"/a": [1]}}}, "metadata.expect.json./a"),
        ({"poll": {}}, "metadata.poll.until"),
        ({"poll": {"until": {}, "backoff": 0.5}}, "metadata.poll.backoff"),
        ({"poll": {"until": {}, "every": 1}}, "metadata.poll.every: unknown"),
        ({"poll": {"until": {}, "interval_seconds": 0}}, "interval_seconds"),
        ({"retry": {"limit": 21}}, "metadata.retry.limit"),
        ({"idempotent": 1}, "metadata.idempotent"),
        ({"request_timeout_seconds": 0}, "metadata.request_timeout_seconds"),
        ({"steps": [{"method": "GET", "url": URL}]}, "either url or steps"),
    ],
)
def test_a_request_that_could_not_be_made_is_refused_by_name(
    changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidError, match=field):
        check_spec(ExecutorType.CLOUD_API, {"method": "GET", "url": URL, **changes})


@pytest.mark.parametrize(
    ("steps", "field"),
    [
        ([], "metadata.steps"),
        ([{"method": "GET", "url": URL}] * 33, "metadata.steps"),
        (["x"], r"metadata.steps\[0\]"),
        ([{"method": "GET", "url": URL, "until": 1}], r"steps\[0\].until: unknown"),
        ([{"method": "GET", "url": URL}, {"method": "GET"}], r"steps\[1\].url"),
    ],
)
def test_steps_are_named_by_their_number(steps: Any, field: str) -> None:
    with pytest.raises(InvalidError, match=field):
        check_spec(ExecutorType.CLOUD_API, {"steps": steps})
