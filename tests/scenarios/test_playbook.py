"""The playbook that restarts a VM, run as a program against a host that answers."""

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tests.scenarios.host import serving
from trustfabric.scenarios.tenants import SCRIPT

TOKEN = "a-secret-token"
pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")


@dataclass
class Vm:
    """A server that stops and starts when it is told to."""

    status: str = "running"
    calls: list[str] = field(default_factory=list)
    answer: Callable[[str], int | None] = lambda _: None

    async def handle(self, request: web.Request) -> web.Response:
        call = f"{request.method} {request.path.removeprefix('/api/servers/9')}"
        self.calls.append(call)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({}, status=401)
        if code := self.answer(call):
            return web.json_response({"detail": "no"}, status=code)
        if call == "GET ":
            body = {"name": 'x","status":"odd', "status": self.status}
            return web.json_response(body)
        self.status = {"POST /stop": "stopped", "POST /start": "running"}[call]
        return web.json_response({}, status=202)


async def restart(vm: Vm, folder: Path, patience: int = 2) -> tuple[int, str, str]:
    """Run the script with a `curl` that notes its arguments; code, output, those."""
    noted = folder / "arguments"
    shim = folder / "bin" / "curl"
    shim.parent.mkdir()
    shim.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >>{noted}\nexec {shutil.which("curl")} "$@"\n'
    )
    shim.chmod(0o755)
    async with serving(vm.handle) as url:
        process = await asyncio.create_subprocess_exec(
            str(SCRIPT),
            env={
                "PATH": f"{shim.parent}:{os.environ['PATH']}",
                "TRUSTFABRIC_URL": url,
                "TRUSTFABRIC_TOKEN": TOKEN,
                "TRUSTFABRIC_SERVER_ID": "9",
                "TRUSTFABRIC_ATTEMPT": "1",
                "TRUSTFABRIC_RUN_DIR": str(folder),
                "PATIENCE_SECONDS": str(patience),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), noted.read_text()


@pytest.mark.slow
async def test_it_stops_the_vm_waits_and_starts_it(tmp_path: Path) -> None:
    vm = Vm()
    code, out, arguments = await restart(vm, tmp_path)
    assert (code, vm.status) == (0, "running")
    assert [call for call in vm.calls if call != "GET "] == [
        "POST /stop",
        "POST /start",
    ]
    assert out.splitlines()[-1] == "running: a new boot"
    assert TOKEN not in arguments
    assert TOKEN not in out


@pytest.mark.slow
async def test_it_waits_out_a_runtime_that_recovers(tmp_path: Path) -> None:
    failures = iter([503, 503])
    vm = Vm(answer=lambda call: next(failures, None) if "start" in call else None)
    code, _, _ = await restart(vm, tmp_path, patience=5)
    assert (code, vm.status) == (0, "running")


@pytest.mark.slow
async def test_a_vm_that_someone_started_meanwhile_is_fine(tmp_path: Path) -> None:
    vm = Vm()

    def someone_was_faster(call: str) -> int | None:
        if call != "POST /start":
            return None
        vm.status = "running"
        return 409

    vm.answer = someone_was_faster
    code, _, _ = await restart(vm, tmp_path)
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize(("status", "expected"), [(403, 77), (404, 1), (503, 75)])
async def test_its_exit_code_says_why_it_failed(
    tmp_path: Path, status: int, expected: int
) -> None:
    vm = Vm(answer=lambda _: status)
    code, out, _ = await restart(vm, tmp_path, patience=1)
    assert code == expected, out
