"""A Debian guest with a virtual TPM: seeded, enrolled by its console, attested.

`make test-slow` builds its disk; GUEST_IMAGE names it.
"""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tests.drivers.private_libvirtd import NOBODY, PrivateLibvirtd, missing
from tests.fix_runtime import Served, serving
from tests.http.client import Caller, Json

pytest.importorskip("libvirt")

IMAGE = os.environ.get("GUEST_IMAGE")
lacks = [
    *missing(),
    *(name for name in ("qemu-img", "swtpm") if shutil.which(name) is None),
    *([] if IMAGE else ["GUEST_IMAGE, see make test-slow"]),
]
pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(lacks), reason=f"missing: {lacks}"),
]

OWNER = 7
PATIENCE_S = 150
PCRS = (11, 12)
"""Which no firmware and no kernel of ours measures anything into."""
POLICY = {
    "id": "guest",
    "version": 1,
    "kinds": {
        "tpm": {
            "allow_software": ["swtpm"],
            "pcrs": {str(pcr): ["00" * 32] for pcr in PCRS},
        }
    },
}


@pytest.fixture
def host() -> Iterator[PrivateLibvirtd]:
    with PrivateLibvirtd.make().running() as host:
        yield host


@pytest.fixture
def runtime(
    host: PrivateLibvirtd, database_url: str, tmp_path: Path
) -> Iterator[Served]:
    assert IMAGE is not None
    base = host.root / "guest.img"
    shutil.copy(IMAGE, base)
    if os.getuid() == 0:
        os.chown(base, NOBODY, NOBODY)
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(POLICY))
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
        "VM_ATTESTATION_POLICY": str(policy),
    }
    with serving(tmp_path / "data", database_url, **settings) as served:
        yield served


@pytest_asyncio.fixture
async def owner(runtime: Served) -> AsyncIterator[Caller]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http:
        yield Caller(runtime, http, OWNER, runtime.token(OWNER))


class Secrets:
    """Gives the guest its token once there is one, as an operator's tool would."""

    def __init__(self) -> None:
        self.token: str | None = None
        app = web.Application()
        app.router.add_get("/token", self._token)
        self._runner = web.AppRunner(app)
        self.port = 0

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _token(self, _: web.Request) -> web.Response:
        if self.token is None:
            return web.Response(status=404)
        return web.Response(text=self.token)


async def line_of(owner: Caller, path: str, begins: str) -> str:
    """Return the first line of the guest's console that begins so."""
    last = "nothing"
    async with owner.stream(f"{path}/vm/logs/stream") as stream:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    frame = await stream.event(PATIENCE_S)
                    last = str(frame.data)
                    if str(frame.data.get("line", "")).startswith(begins):
                        return str(frame.data["line"])
        except TimeoutError:
            pytest.fail(f"no line {begins!r}; last seen: {last}")


async def until_vm(owner: Caller, path: str, **wanted: Any) -> Json:
    vm: Json = {}
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not vm or any(vm[name] != value for name, value in wanted.items()):
                await asyncio.sleep(0.2)
                vm = (await owner.get(f"{path}/vm")).json()["instances"][0]
    except TimeoutError:
        pytest.fail(f"never {wanted}; last seen: {vm}")
    return vm


async def test_a_guest_with_a_real_vtpm_attests_from_its_seed_to_its_trust(
    owner: Caller, runtime: Served, host: PrivateLibvirtd
) -> None:
    async with Secrets() as secrets:
        seed = "\n".join(
            [
                "#!/bin/sh",
                f"TOKEN_URL=http://10.0.2.2:{secrets.port}/token",
                f"RUNTIME_URL=http://10.0.2.2:{runtime.url.rpartition(':')[2]}",
                f"AGENT='--pcrs {','.join(map(str, PCRS))}'",
                "",
            ]
        )
        config = {
            "vm": {
                "image": "debian",
                "memory_mib": 512,
                "vcpu_count": 1,
                "cloud_init": {"user_data": seed},
            },
            "attestation": {"kind": "tpm", "source": "agent"},
        }
        server = await owner.made("/api/servers", {"name": "web", "config": config})
        assert server["config"]["vm"]["cloud_init"] == {"user_data": "***"}
        path = f"/api/servers/{server['id']}"
        await owner.made(f"{path}/start")
        vm = await until_vm(owner, path, power_state="running")

        enrolled = await line_of(owner, path, "ENROLL ")
        key = json.loads(enrolled.removeprefix("ENROLL "))
        about = {"runtime_vm_instance_id": vm["id"]}
        await owner.made(
            "/api/attestation/keys", {**about, "tpmt_public": key["tpmt_public"]}
        )
        made = await owner.made("/api/attestation/tokens", about)
        secrets.token = made["token"]

        trusted = await until_vm(owner, path, attestation_status="trusted")

    assert trusted["trust_lifecycle_state"] == "restored"
    assert trusted["trust_provenance_ref"].startswith("attestation:tpm:")
    assert (host.root / "volumes" / f"{vm['instance_id']}-seed.iso").exists()
    assert (await owner.call("DELETE", path)).status == 204
