"""Real guests through the whole runtime: booted, read, killed, removed."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.drivers.private_libvirtd import NOBODY, PrivateLibvirtd, missing
from tests.fix_runtime import Served, mcpctl, serving
from tests.http.client import Caller, Frame, Json, Stream

pytest.importorskip("libvirt")

lacks = [*missing(), *([] if shutil.which("qemu-img") else ["qemu-img"])]
pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(lacks), reason=f"not installed: {lacks}"),
]

OWNER = 7


@pytest.fixture
def host() -> Iterator[PrivateLibvirtd]:
    with PrivateLibvirtd.make().running() as host:
        yield host


@pytest.fixture
def qemu_runtime(
    host: PrivateLibvirtd, database_url: str, tmp_path: Path
) -> Iterator[Served]:
    """A runtime whose VMs are overlays of the guest that prints and ticks."""
    base = host.root / "base.img"
    shutil.copy(host.root / "boot.img", base)
    os.truncate(base, 1 << 20)
    if os.getuid() == 0:
        os.chown(base, NOBODY, NOBODY)
    volume = {
        "path": f"{host.root}/volumes/{{instance_id}}.qcow2",
        "driver": "qcow2",
        "base_image": str(base),
        "size_gib": 1,
    }
    settings = {
        "LIBVIRT_CONNECTION_URI": host.uri,
        "LIBVIRT_NETWORK_TEMPLATE": json.dumps({"type": "user"}),
        "LIBVIRT_VOLUME_TEMPLATE": json.dumps(volume),
        "LIBVIRT_VOLUME_ROOTS": str(host.root),
    }
    with serving(tmp_path / "data", database_url, **settings) as served:
        yield served


@pytest_asyncio.fixture
async def owner(qemu_runtime: Served) -> AsyncIterator[Caller]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http:
        yield Caller(qemu_runtime, http, OWNER, qemu_runtime.token(OWNER))


async def a_started_server(owner: Caller) -> str:
    config = {
        "vm": {"image": "tiny", "memory_mib": 32, "vcpu_count": 1},
        "attestation": {"kind": "intel-tdx"},  # no vTPM: it would double the time
    }
    server = await owner.made("/api/servers", {"name": "web", "config": config})
    path = f"/api/servers/{server['id']}"
    await owner.made(f"{path}/start")
    return path


async def vm_of(owner: Caller, path: str) -> Json:
    vm: Json = (await owner.get(f"{path}/vm")).json()["instances"][0]
    return vm


async def until_line(stream: Stream, line: str) -> list[Frame]:
    """Return the frames up to a line."""
    frames: list[Frame] = []
    async with asyncio.timeout(40):
        while not (frames and frames[-1].data.get("line") == line):
            frames.append(await stream.event(40))
    return frames


async def until_vm(owner: Caller, path: str, **wanted: Any) -> Json:
    async with asyncio.timeout(40):
        while True:
            vm = await vm_of(owner, path)
            if all(vm[name] == value for name, value in wanted.items()):
                return vm
            await asyncio.sleep(0.1)


async def test_a_guest_that_is_killed_boots_again_and_its_console_goes_on(
    owner: Caller, host: PrivateLibvirtd
) -> None:
    path = await a_started_server(owner)

    async with owner.stream(f"{path}/vm/logs/stream") as stream:
        up = (await until_line(stream, "GUEST-UP"))[-1]
        vm = await until_vm(owner, path, power_state="running")
        os.kill(host.qemu_of(vm["instance_id"]), signal.SIGKILL)
        frames = await until_line(stream, "GUEST-UP")

    assert (up.event, up.data["seq"]) == ("log", 1)
    seqs = [int(frame["id"].partition(".")[2]) for frame in frames]
    assert seqs == list(range(2, len(seqs) + 2))
    assert [f.data["message"] for f in frames if f.event == "discontinuity"] == [
        "a new boot"
    ]
    again = await until_vm(owner, path, power_state="running")
    assert again["boot_id"] != vm["boot_id"]
    kinds = [event["event_type"] for event in again["events"]]
    assert [kind for kind in kinds if kind not in {"attested", "defined"}] == [
        "started",
        "crashed",
        "started",
    ]


async def test_a_guest_and_its_lines_outlive_the_runtime(
    owner: Caller, qemu_runtime: Served
) -> None:
    path = await a_started_server(owner)
    async with owner.stream(f"{path}/vm/logs/stream") as stream:
        seen = (await until_line(stream, "GUEST-UP"))[-1]
    before = await until_vm(owner, path, power_state="running")

    qemu_runtime.stop(signal.SIGKILL)
    qemu_runtime.start()

    tail = (await owner.get(f"{path}/vm/logs")).json()
    assert tail["lines"][0] == "GUEST-UP"
    async with owner.stream(f"{path}/vm/logs/stream", seen["id"]) as stream:
        following = await stream.event()
        assert following["id"].endswith(".2")
    after = await vm_of(owner, path)
    assert after["boot_id"] == before["boot_id"]
    kept = list((qemu_runtime.data_dir / "console-logs").iterdir())
    assert [file.stat().st_mode & 0o777 for file in kept] == [0o600]


async def test_mcpctl_follows_a_console(owner: Caller, qemu_runtime: Served) -> None:
    path = await a_started_server(owner)
    await until_vm(owner, path, power_state="running")
    client = {"MCP_HOST_URL": qemu_runtime.url, "MCP_HOST_TOKEN": owner.token or ""}

    process = mcpctl(
        {**client, "PYTHONUNBUFFERED": "1"},
        *("servers", "logs", path.rpartition("/")[2], "-f"),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        read = process.stdout.readline
        async with asyncio.timeout(30):
            lines = [await asyncio.to_thread(read) for _ in range(4)]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()

    ticks = [line.decode().split() for line in lines if line.startswith(b"tick ")]
    numbers = [int(number) for _, number in ticks]
    assert lines[0] == b"GUEST-UP\n"
    assert numbers == list(range(1, 4))


async def test_a_server_that_is_deleted_leaves_no_domain_disk_or_line(
    owner: Caller, host: PrivateLibvirtd, qemu_runtime: Served
) -> None:
    path = await a_started_server(owner)
    async with owner.stream(f"{path}/vm/logs/stream") as stream:
        await until_line(stream, "GUEST-UP")
        assert list((host.root / "volumes").iterdir())
        await until_vm(owner, path, power_state="running")

        assert (await owner.call("DELETE", path)).status == 204

        rest = await stream.until_end(within_s=30)

    assert rest[-1].event == "end"
    assert list((host.root / "volumes").iterdir()) == []
    assert list((qemu_runtime.data_dir / "console-logs").iterdir()) == []
    assert list(host.root.glob("run/libvirt/qemu/run/tf-*.pid")) == []
