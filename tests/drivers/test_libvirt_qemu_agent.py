"""The port of a guest's agent, on a real QEMU."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.drivers.links import BOOT
from tests.drivers.private_libvirtd import PrivateLibvirtd, missing
from trustfabric.drivers.agents import AgentSockets
from trustfabric.drivers.libvirt import LibvirtProvisioner

pytest.importorskip("libvirt")

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]


async def test_a_guest_whose_agent_is_not_there_is_only_silent(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    folder = host.root / "agents"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    spec = host.spec()
    socket = folder / f"{spec.name}.sock"
    await qemu_driver.define(replace(spec, agent_socket=str(socket)))

    await qemu_driver.start(spec.name, BOOT)

    assert Path(socket).is_socket()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await AgentSockets(folder).collect(spec.name, bytes(32))
    # It let go of the port: whoever asks next is heard.
    _, writer = await asyncio.open_unix_connection(socket)
    writer.close()
