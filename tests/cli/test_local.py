"""The commands that work on this machine: what they refuse and what they print."""

import os
import subprocess
import sys
from pathlib import Path

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
