"""`mcpctl attest`: what it asks the host for, and what it judges by itself."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Done, Mcpctl
from tests.cli.host import TOKEN, Answer, Asked, Host
from tests.domain.evidence.tpm_quotes import NONCE
from tests.domain.test_references import GOOD, OTHER, a_stored, quoted
from trustfabric.cli.main import command_table, run
from trustfabric.domain.attestation.stored import dump
from trustfabric.main import attest

API = "/api/attestation"


@pytest.fixture
def mcpctl(host: Host, capsys: pytest.CaptureFixture[str]) -> Mcpctl:
    async def call(*args: str, url: str | None = None) -> Done:
        root = command_table()
        root.add_command(attest)
        options = ["--host", url or host.url, "--token", TOKEN, "--timeout", "5"]
        code = await asyncio.to_thread(run, root, [*options, *args])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


COMMANDS: list[tuple[str, str, str, Any]] = [
    ("attest get 3", "GET", f"{API}/3", None),
    (
        "attest tokens issue 7 --ttl 60 --any-boot",
        "POST",
        f"{API}/tokens",
        {"runtime_vm_instance_id": 7, "ttl_seconds": 60, "boot": "any"},
    ),
    (
        'attest enroll 7 {"tpmt_public":"AAAA","name":"00"} --endorser ek:1',
        "POST",
        f"{API}/keys",
        {"runtime_vm_instance_id": 7, "tpmt_public": "AAAA", "endorser": "ek:1"},
    ),
    ("attest policies get 3", "GET", f"{API}/policies/3", None),
    (
        'attest policies create prod {"max_age_s":60} --image demo --note n',
        "POST",
        f"{API}/policies",
        {"name": "prod", "document": {"max_age_s": 60}, "image": "demo", "note": "n"},
    ),
    (
        "attest policies activate 3 --expected-version 2 --previous-until T",
        "POST",
        f"{API}/policies/3/activate",
        {"expected_version": 2, "previous_until": "T"},
    ),
    (
        "attest references deprecate 3 --expected-version 2 --until T",
        "POST",
        f"{API}/references/3/deprecate",
        {"expected_version": 2, "until": "T"},
    ),
    (
        "attest references revoke 3 --expected-version 2",
        "POST",
        f"{API}/references/3/revoke",
        {"expected_version": 2},
    ),
]


@pytest.mark.parametrize(
    ("line", "method", "path", "body"), COMMANDS, ids=[row[0] for row in COMMANDS]
)
async def test_a_command_asks_for(
    host: Host, mcpctl: Mcpctl, line: str, method: str, path: str, body: Any
) -> None:
    host.answers(method, path, {"id": 1, "token": "t", "version": 2})

    done = await mcpctl(*line.split(), "--json")
    shown = await mcpctl(*line.split())

    assert (done.code, shown.code) == (0, 0)
    assert json.loads(done.out) == {"id": 1, "token": "t", "version": 2}
    assert host.last(method, path).body == body


async def test_a_token_is_all_that_is_printed(host: Host, mcpctl: Mcpctl) -> None:
    host.answers("POST", f"{API}/tokens", {"id": 1, "token": "abc.def"})

    assert (await mcpctl("attest", "tokens", "issue", "7")).out == "abc.def\n"


async def test_a_move_without_a_version_reads_it_first(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("GET", f"{API}/policies/3", {"id": 3, "version": 9})
    host.answers("POST", f"{API}/policies/3/revoke", {"id": 3})

    done = await mcpctl("attest", "policies", "revoke", "3")

    assert "based on version 9" in done.err
    assert host.last("POST", f"{API}/policies/3/revoke").body == {"expected_version": 9}


def a_row(number: int, *, changes: bool) -> dict[str, Any]:
    status = "untrusted" if changes else "trusted"
    failed = {"name": "pcr-0", "expected": "aa", "actual": "bb"}
    return {
        "vm_instance_id": number,
        "instance_id": f"vm-{number}",
        "changes": changes,
        "now": {"status": "trusted", "code": "ok"},
        "would_be": {"status": status, "code": "x"},
        "failed_checks": [failed] if changes else [],
    }


async def test_a_dry_run_goes_through_the_whole_fleet(
    host: Host, mcpctl: Mcpctl
) -> None:
    fleet = [a_row(number, changes=number == 60) for number in range(1, 71)]

    def page(asked: Asked) -> Answer:
        after, limit = int(asked.query["cursor"]), int(asked.query["limit"])
        return Answer([row for row in fleet if row["vm_instance_id"] > after][:limit])

    host.replies["POST", f"{API}/policies/dry-run"] = page

    done = await mcpctl("attest", "policies", "create", "prod", "{}", "--dry-run")
    whole = await mcpctl("attest", "policies", "dry-run", "4", "--json")

    assert "1 of 70 instances would be judged otherwise" in done.err
    assert "vm-60" in done.out
    assert "vm-61" not in done.out
    assert "expected aa, actual bb" in done.out
    assert len(json.loads(whole.out)) == 70
    assert host.last("POST", f"{API}/policies/dry-run").body == {"version_id": 4}


async def test_a_stored_verdict_is_come_to_again(host: Host, mcpctl: Mcpctl) -> None:
    host.answers("GET", f"{API}/17/case", dump(a_stored()))

    done = await mcpctl("attest", "verify", "--stored", "17")

    verdict = json.loads(done.out)
    assert done.code == 0
    assert (verdict["id"], verdict["accept"]) == ("attestation-17", True)
    assert verdict["agrees"] is True


async def test_what_failed_is_told_with_what_was_wanted(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("GET", f"{API}/17/case", dump(a_stored(OTHER)))

    done = await mcpctl("attest", "verify", "--stored", "17")

    assert done.code == 1
    assert f"expected {GOOD.hex()}, actual {OTHER.hex()}" in done.err
    assert json.loads(done.out)["agrees"] is False


async def test_a_verdict_is_kept_and_verified_without_a_host(
    host: Host, mcpctl: Mcpctl, tmp_path: Path
) -> None:
    host.answers("GET", f"{API}/17/case", dump(a_stored()))
    file = tmp_path / "17.json"

    kept = await mcpctl("attest", "download", "17", str(file))
    done = await mcpctl("attest", "verify", str(file), url="http://127.0.0.1:1")

    assert (kept.code, done.code) == (0, 0)
    assert json.loads(done.out)["recorded_code"] == "ok-with-advisories"


async def test_raw_evidence_is_kept_as_it_is(
    host: Host, mcpctl: Mcpctl, tmp_path: Path
) -> None:
    evidence = quoted(nonce=NONCE)
    host.answers("GET", f"{API}/17/evidence", evidence)

    await mcpctl("attest", "download", "17", str(tmp_path / "raw"), "--raw")

    assert (tmp_path / "raw").read_bytes() == evidence


@pytest.mark.parametrize(
    "line",
    [
        "attest verify",
        "attest verify --stored 1 pyproject.toml",
        "attest enroll 7 {}",
        "attest policies deprecate 3",
        "attest policies create prod [1]",
    ],
)
async def test_wrong_usage_is_exit_code_2(mcpctl: Mcpctl, line: str) -> None:
    assert (await mcpctl(*line.split())).code == 2
