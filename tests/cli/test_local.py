"""The commands that work on this machine: what they refuse and what they print."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import jwt
import pytest

from tests.cli.conftest import ROOT


def mcpctl(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trustfabric.main", *args],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "args", [("serve",), ("token", "--sub", "7", "--role", "operator")]
)
def test_a_bad_configuration_lists_every_fault_and_is_exit_code_2(
    args: tuple[str, ...], tmp_path: Path
) -> None:
    done = mcpctl(
        *(*args, "--data-dir", str(tmp_path)),
        BIND_PORT="many",
        VM_PROVISIONER_DRIVER="wish",
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert "BIND_PORT" in done.stderr
    assert "VM_PROVISIONER_DRIVER" in done.stderr
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    "args",
    [
        ("token", "--sub", "0", "--role", "operator"),
        ("token", "--sub", "7", "--role", "king"),
        ("token", "--role", "admin"),
        ("attest", "verify", "/no/such/file"),
        ("scenarios", "list", "--dir", "/no/such/folder"),
    ],
)
def test_wrong_usage_is_exit_code_2(args: tuple[str, ...]) -> None:
    done = mcpctl(*args)

    assert done.returncode == 2
    assert done.stdout == ""


ALONE = "name: alone\ntag: tag:alone\nkind: tenant-isolation\ntenants: [tenant-x]\n"


@pytest.mark.slow
def test_scenarios_are_listed_and_described(tmp_path: Path) -> None:
    (tmp_path / "alone.yaml").write_text(ALONE)

    listed = mcpctl("scenarios", "list", "--dir", str(tmp_path), "--json")
    manifest = mcpctl("scenarios", "manifest", REM_FABRIC_SCENARIO_DIR=str(tmp_path))

    assert (listed.returncode, manifest.returncode) == (0, 0)
    [row] = json.loads(listed.stdout)
    assert (row["name"], row["tag"]) == ("alone", "tag:alone")
    [source] = json.loads(manifest.stdout)["scenarios"]
    assert source["sha256"] == sha256(ALONE.encode()).hexdigest()
    assert source["scenarios"][0]["tenants"] == ["tenant-x"]


@pytest.mark.slow
def test_a_scenario_folder_with_a_fault_is_refused_by_file_and_field(
    tmp_path: Path,
) -> None:
    (tmp_path / "alone.yaml").write_text(ALONE)
    (tmp_path / "wrong.yaml").write_text("name: x\nkind: wish\n")

    done = mcpctl("scenarios", "list", "--dir", str(tmp_path))

    assert done.returncode == 2
    assert done.stdout == ""
    assert "wrong.yaml: $.tag" in done.stderr
    assert "wrong.yaml: $.kind" in done.stderr


@pytest.mark.slow
def test_a_token_is_signed_with_the_configured_secret(tmp_path: Path) -> None:
    secret = "x" * 32
    args = ("token", "--sub", "7", "--role", "operator", "--ttl", "60")

    done = mcpctl(*args, "--data-dir", str(tmp_path), JWT_SECRET=secret)

    assert (done.returncode, done.stderr) == (0, "")
    claims = jwt.decode(done.stdout.strip(), secret, algorithms=["HS256"])
    assert (int(claims["sub"]), claims["role"]) == (7, "operator")
