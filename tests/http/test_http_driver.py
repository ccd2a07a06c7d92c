"""VMs behind an HTTP API: nobody here can ask them, so their agents push."""

import asyncio
from pathlib import Path

import aiohttp

from tests.drivers.reference_hypervisor import ReferenceHypervisor
from tests.fix_runtime import Served
from tests.http.client import Caller
from tests.http.guests import TAMPERED, a_guest


async def test_a_vm_of_the_http_driver_is_attested_by_its_agent_s_push(
    http: aiohttp.ClientSession, database_url: str, tmp_path: Path
) -> None:
    async with ReferenceHypervisor() as hypervisor:
        runtime = Served(
            tmp_path / "data",
            database_url,
            VM_PROVISIONER_DRIVER="http",
            VM_HYPERVISOR_ENDPOINT=hypervisor.url,
        )
        try:
            await asyncio.to_thread(runtime.start)
            owner = Caller(runtime, http, 7, runtime.token(7))
            guest = await a_guest(owner)

            await guest.answer()
            row = await guest.until_posture(lifecycle_state="restored")
            await guest.attest()
            await guest.answer(TAMPERED)
            await guest.until_posture(lifecycle_state="quarantined")

            driver = runtime.rows("SELECT DISTINCT driver FROM runtime_vm_instances")
            assert driver == [("http",)]
            assert row["attestation_status"] == "trusted"
        finally:
            await asyncio.to_thread(runtime.stop)
