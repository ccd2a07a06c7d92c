"""Ten thousand VMs on libvirt's test driver: adopted, looked at, heard of."""

import asyncio
import gc
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.bench import Bench, Seed
from benchmarks.frame import By, Figure, Part, Sample, percentile
from trustfabric import log
from trustfabric.actors.attestation import Attestation
from trustfabric.actors.equipment import Equipment
from trustfabric.actors.hypervisor import Hypervisor, hypervisor_maker
from trustfabric.actors.trust import TrustRegistry
from trustfabric.actors.vms import Vm, settled_as, vm_maker
from trustfabric.config import LibvirtSettings
from trustfabric.db import boots, vms
from trustfabric.db.session import Database
from trustfabric.db.vms import Adopted
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.power import Hold
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_errors import load_binding
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.swtpm import SoftTpms
from trustfabric.errors import FabricError
from trustfabric.launches import Launches
from trustfabric.supervision import (
    Address,
    AskError,
    ChildSpec,
    DynamicAddress,
    DynamicSpec,
    Runtime,
    SupervisorSpec,
)

VMS = 10_000
EVENTS = 500
"""Domains that are switched off at once, by somebody else."""
ONE_BY_ONE = 50
WITHIN_S = 120.0

ADOPTED = Figure(
    name="10 000 running VMs adopted at start",
    unit="s",
    less_is_better=True,
    floor=10,
    aim=3,
)
RECONCILED = Figure(
    name="reconcile of 10 000 VMs",
    unit="ms",
    peer="libvirt's own list of them",
    by=By.RATIO,
    less_is_better=True,
    floor=4,
    aim=2.5,
)
NOTED = Figure(
    name="VM switched off outside → noted and distrusted, p50",
    unit="ms",
    less_is_better=True,
    floor=200,
    aim=50,
)
STORM = Figure(
    name=f"{EVENTS} of 10 000 VMs switched off at once, all noted",
    unit="/s",
    floor=50,
    aim=150,
)
MEMORY = Figure(
    name="memory per idle VM actor and its domain's record",
    unit="kB",
    less_is_better=True,
    floor=15,
    aim=6,
)


@dataclass(slots=True)
class Host:
    """One runtime's VMs, and what looks after them."""

    database: Database
    provisioner: LibvirtProvisioner
    hypervisor: Address[Hypervisor]
    vms: DynamicAddress[Vm]
    equipment: Equipment
    runtime: Runtime
    names: Sequence[str]

    async def watch_over(self, one: Adopted) -> None:
        settled = None if one.unsettled else settled_as(one)
        make = vm_maker(one.id, self.equipment, settled)
        await self.vms.start_child(str(one.id), make)


async def measure(bench: Bench) -> list[Sample]:
    count = bench.size(VMS, 1_000)
    log.set_up(level="error", style="json")
    seed = Seed(instances=count, runtime="here", servers=count)
    async with bench.database(seed) as url, _host(url, bench.folder(), count) as host:
        samples = await _adopt(host, count)
        samples.append(await _reconcile(host))
        samples.append(await _one_by_one(host))
        samples.append(await _storm(host))
    return samples


PARTS = (
    Part(
        "machines",
        (ADOPTED, RECONCILED, NOTED, STORM, MEMORY),
        measure,
        once=True,
    ),
)


@asynccontextmanager
async def _host(url: str, folder: Path, count: int) -> AsyncIterator[Host]:
    """Define and start the domains, as an earlier process of ours would have."""
    events = EventLoop(asyncio.get_running_loop())
    events.start()
    database = await Database.open(url, pool_size=8)
    with ThreadPoolExecutor(8) as threads:
        provisioner = LibvirtProvisioner(
            "test:///default",
            events=events,
            executor=threads,
            runtime=f"here-{uuid.uuid4().hex[:8]}",
        )
        host = _parts(database, provisioner, threads, folder)
        await _prepare(url)
        await provisioner.open(lambda _: None, lambda _: None)
        host.names = await _make_domains(host, count)
        try:
            yield host
        finally:
            await host.runtime.stop()
            await provisioner.open(lambda _: None, lambda _: None)
            for name in host.names:
                await provisioner.undefine(name)
            await provisioner.close()
            await database.close()
            events.stop()


async def _prepare(url: str) -> None:
    """What ends stays off: the figures are of noting, not of booting."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET power_state = 'running',"
            " boot_id = gen_random_uuid(),"
            """ config = '{"vm": {"restart": "never"}}', defined_at = now()"""
        )
        await conn.execute("ANALYZE")


def _parts(
    database: Database,
    provisioner: LibvirtProvisioner,
    threads: ThreadPoolExecutor,
    folder: Path,
) -> Host:
    hypervisor: Address[Hypervisor] = Address("link")
    trust: Address[TrustRegistry] = Address("trust")
    children: DynamicAddress[Vm] = DynamicAddress("vms")
    attestation: Address[Attestation] = Address("attestation")
    launches = Launches(
        settings=LibvirtSettings(),
        provisioner=provisioner,
        data_dir=str(folder),
        runtime_id="here",
        epoch=1,
        policy_id="default",
    )
    equipment = Equipment(
        database=database,
        provisioner=provisioner,
        hypervisor=hypervisor,
        trust=trust,
        attestation=attestation,
        tpms=SoftTpms(folder / "tpm", threads),
        spec_of=launches.spec_of,
        quarantine_action=Hold.NONE,
        epoch=1,
        new_boot_id=uuid.uuid4,
        gone=lambda _: None,
    )
    runtime = Runtime(answers=(FabricError, AskError))
    return Host(database, provisioner, hypervisor, children, equipment, runtime, ())


async def _make_domains(host: Host, count: int) -> list[str]:
    async with host.database.reading() as conn:
        rows = [
            await vms.get_instance(conn, None, InstanceId(n + 1)) for n in range(count)
        ]
    found = [row for row in rows if row is not None]
    for row in found:
        await host.provisioner.define(host.equipment.spec_of(row))
        assert row.boot_id is not None
        await host.provisioner.start(row.name, row.boot_id)
    return [row.name for row in found]


def _tree(host: Host) -> SupervisorSpec:
    async def write(heard: Any) -> None:
        async with host.database.writing() as conn:
            await boots.add_reboots(conn, heard)

    return SupervisorSpec(
        name="bench",
        max_restarts=10,
        children=(
            ChildSpec(
                address=host.equipment.trust,
                start=lambda: TrustRegistry(host.database),
            ),
            ChildSpec(
                address=host.hypervisor,
                start=hypervisor_maker(host.provisioner, write),
            ),
            DynamicSpec(address=host.vms, max_restarts=10),
        ),
    )


async def _adopt(host: Host, count: int) -> list[Sample]:
    await host.provisioner.close()
    gc.collect()
    before = _resident()
    begun = time.perf_counter()
    await host.runtime.start(_tree(host))
    async with host.database.writing() as conn:
        living = await vms.adopt_living(conn, "here", 1)
    for one in living:
        await host.watch_over(one)
    await _until_watched(host, count)
    took = time.perf_counter() - begun
    gc.collect()
    kilobytes = (_resident() - before) / count / 1e3
    return [Sample(ADOPTED.name, took), Sample(MEMORY.name, kilobytes)]


async def _until_watched(host: Host, count: int) -> None:
    """Every VM's actor has looked and asked to be told."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            if getattr(host.hypervisor.cell.actor, "watched", 0) >= count:
                return
            await asyncio.sleep(0.01)


async def _reconcile(host: Host) -> Sample:
    libvirt = load_binding()
    conn = libvirt.open("test:///default")
    ours, beside = [], []
    for _ in range(9):
        begun = time.perf_counter()
        await host.provisioner.observe()
        ours.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        await asyncio.to_thread(conn.getAllDomainStats, 1, 0)
        beside.append(time.perf_counter() - begun)
    conn.close()
    return Sample(
        RECONCILED.name, percentile(ours, 0.5) * 1e3, percentile(beside, 0.5) * 1e3
    )


async def _one_by_one(host: Host) -> Sample:
    libvirt = load_binding()
    conn = libvirt.open("test:///default")
    took = []
    for name in host.names[:ONE_BY_ONE]:
        begun = time.perf_counter()
        await asyncio.to_thread(conn.lookupByName(name).destroy)
        await _until_noted(host, [name])
        took.append(time.perf_counter() - begun)
    conn.close()
    return Sample(NOTED.name, percentile(took, 0.5) * 1e3)


async def _storm(host: Host) -> Sample:
    libvirt = load_binding()
    names = host.names[ONE_BY_ONE : ONE_BY_ONE + EVENTS]
    conn = libvirt.open("test:///default")
    begun = time.perf_counter()

    def switch_off() -> None:
        for name in names:
            conn.lookupByName(name).destroy()

    await asyncio.to_thread(switch_off)
    await _until_noted(host, names)
    took = time.perf_counter() - begun
    conn.close()
    return Sample(STORM.name, len(names) / took)


async def _until_noted(host: Host, names: Sequence[str]) -> None:
    query = (
        "SELECT count(*) FROM runtime_vm_instances"
        " WHERE instance_id = ANY(%s) AND power_state = 'crashed'"
    )
    async with asyncio.timeout(WITHIN_S):
        while True:
            async with host.database.reading() as conn:
                row = await (await conn.execute(query, (list(names),))).fetchone()
            if row is not None and row[0] == len(names):
                return
            await asyncio.sleep(0.005)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4096
