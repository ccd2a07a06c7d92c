"""The tree with machines in it: libvirt's test driver and software TPMs, all real."""

import asyncio
import secrets
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from tests.builders import OWNER, insert_owner
from tests.fix_fabric import ASK_S, RUNTIME, Fabric, until
from trustfabric.actors import attestation, hypervisor
from trustfabric.actors.attestation import Attestation, EvidenceSource
from trustfabric.actors.equipment import Equipment
from trustfabric.actors.evaluations import Cadence, Scheduler
from trustfabric.actors.hypervisor import Hypervisor, hypervisor_maker
from trustfabric.actors.launcher import Caller, Fleet
from trustfabric.actors.servers import (
    CreateServer,
    Gone,
    Servers,
    StartServer,
)
from trustfabric.actors.vms import Vm
from trustfabric.config import LibvirtSettings
from trustfabric.db import boots
from trustfabric.db.servers import NewServer, get_server
from trustfabric.db.session import Database
from trustfabric.db.vms import Instance, get_instance, list_events, list_newest
from trustfabric.domain.attestation.policy import DEMO_POLICY
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.ports import Provisioner
from trustfabric.domain.power import Hold
from trustfabric.domain.servers import Server
from trustfabric.domain.trust import Snapshot
from trustfabric.domain.vms import PowerChange, PowerEvent
from trustfabric.drivers.libvirt import LibvirtProvisioner
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
    ManualClock,
    Request,
    Restart,
    Runtime,
    SupervisorSpec,
)

R = TypeVar("R")

CALLER = Caller(OwnerId(OWNER), f"user:{OWNER}")
PATIENCE = 300
WITH_TPM = {"attestation": {"kind": "tpm", "source": "swtpm"}}
SETTINGS = attestation.Settings(
    policy=DEMO_POLICY,
    anchors=packaged_anchors(),
    max_age=timedelta(seconds=300),
    timeout_s=5.0,
    runtime_id=RUNTIME,
    attempts=2,
    identity_key=b"of tests",
)
CADENCE = Cadence(
    tick_s=10.0,
    ahead=timedelta(seconds=150),
    quiet=timedelta(seconds=30),
    longest=timedelta(seconds=300),
)


@dataclass(kw_only=True)
class Machines(Fabric):
    """The tree down to the VMs and the scheduler."""

    provisioner: Any
    """A LibvirtProvisioner, unless a test brings another."""
    tpms: SoftTpms
    verifying: ThreadPoolExecutor
    epoch: int = 1
    schedules: bool = False
    quarantine_action: Hold = Hold.NONE
    sources: dict[str, EvidenceSource] = field(default_factory=dict)
    settings: attestation.Settings = SETTINGS
    libvirt: LibvirtSettings = field(default_factory=LibvirtSettings)
    attestation: Address[Attestation] = field(
        default_factory=lambda: Address("attestation")
    )
    hypervisor: Address[Hypervisor] = field(default_factory=lambda: Address("link"))
    vms: DynamicAddress[Vm] = field(default_factory=lambda: DynamicAddress("vms"))
    servers: Address[Servers] = field(default_factory=lambda: Address("servers"))
    scheduler: Address[Scheduler] = field(
        default_factory=lambda: Address("evaluations")
    )

    def spec(self) -> SupervisorSpec:
        below = super().spec()
        return SupervisorSpec(
            name=below.name,
            max_restarts=100,
            children=(
                *below.children,
                ChildSpec(address=self.attestation, start=self._attestation),
                ChildSpec(
                    address=self.hypervisor,
                    start=hypervisor_maker(self.provisioner, self._add_reboots),
                ),
                DynamicSpec(
                    address=self.vms, restart=Restart.TRANSIENT, max_restarts=100
                ),
                ChildSpec(address=self.servers, start=lambda: Servers(self._fleet())),
                *self._scheduler(),
            ),
        )

    def _scheduler(self) -> tuple[ChildSpec[Scheduler], ...]:
        if not self.schedules:
            return ()
        return (
            ChildSpec(
                address=self.scheduler,
                start=lambda: Scheduler(
                    self.database, self.trust, self.attestation, CADENCE, self.name
                ),
            ),
        )

    async def _add_reboots(self, heard: Mapping[str, int]) -> None:
        async with self.database.writing() as conn:
            await boots.add_reboots(conn, heard)

    def _attestation(self) -> Attestation:
        return Attestation(
            self.database,
            self.trust,
            {"swtpm": self.tpms, **self.sources},
            replace(self.settings, runtime_id=self.name),
            self.verifying,
            secrets.token_bytes,
        )

    def _fleet(self) -> Fleet:
        launches = Launches(
            settings=self.libvirt,
            provisioner=self.provisioner,
            data_dir="/var/lib/trustfabric",
            runtime_id=self.name,
            epoch=self.epoch,
            policy_id=DEMO_POLICY.id,
        )
        equipment = Equipment(
            database=self.database,
            provisioner=self.provisioner,
            hypervisor=self.hypervisor,
            trust=self.trust,
            attestation=self.attestation,
            tpms=self.tpms,
            spec_of=launches.spec_of,
            quarantine_action=self.quarantine_action,
            epoch=self.epoch,
            new_boot_id=uuid.uuid4,
            gone=lambda instance: _told(self.servers.tell(Gone(instance))),
        )
        return Fleet(
            database=self.database,
            trust=self.trust,
            broadcaster=self.broadcaster,
            vms=self.vms,
            equipment=equipment,
            new_instance=launches.new_instance,
            runtime_id=self.name,
            epoch=self.epoch,
        )

    async def server(self, **config: Any) -> Server:
        """Add a server of the caller's, not started."""
        async with self.database.writing() as conn:
            await insert_owner(conn, OWNER)
        new = NewServer(
            owner_id=OwnerId(OWNER), name="web", server_type=None, config=config
        )
        return await self.ask(CreateServer(new))

    async def ask(self, request: Request[Servers, R]) -> R:
        return await self.servers.ask(request, within_s=ASK_S)

    async def started(self, **config: Any) -> Instance:
        """Start a new server; return its instance, which runs."""
        server = await self.server(**config)
        await self.ask(StartServer(server.id, CALLER))
        return await self.until_running(server.id)

    async def restored(self) -> Instance:
        """Start a server with a TPM; return its instance, which is trusted."""
        instance = await self.started(**WITH_TPM)
        await self.until_posture(instance.id, lifecycle="restored")
        return instance

    def reboot(self, instance: Instance) -> None:
        """Have the hypervisor tell that a guest rebooted."""
        event = PowerEvent(instance.name, 1, PowerChange.REBOOTED)
        self.hypervisor.tell(hypervisor._Happened(event))

    async def newest(self, server: ServerId) -> Instance:
        async with self.database.reading() as conn:
            return (await list_newest(conn, server, limit=1))[0]

    async def read(self, instance: InstanceId) -> Instance:
        async with self.database.reading() as conn:
            found = await get_instance(conn, None, instance)
        assert found is not None
        return found

    async def read_server(self, server: ServerId) -> Server:
        async with self.database.reading() as conn:
            found = await get_server(conn, None, server)
        assert found is not None
        return found

    async def log(self, instance: InstanceId) -> list[str]:
        """Return the types of the instance's own events, oldest first."""
        async with self.database.reading() as conn:
            events = await list_events(conn, instance, limit=100)
        return [event[0] for event in events][::-1]

    async def power_log(self, instance: InstanceId) -> list[str]:
        aside = {"attested", "defined"}
        return [each for each in await self.log(instance) if each not in aside]

    async def until_running(self, server: ServerId) -> Instance:
        looks = 0

        async def look() -> Instance | None:
            nonlocal looks
            looks += 1
            if looks > PATIENCE:
                self.clock.advance(0.05)  # a busy machine: something is tried again
            instance = await self.newest(server)
            return instance if instance.power_state == "running" else None

        return await until(look, "the VM to run")

    async def until_instance(self, instance: InstanceId, **wanted: Any) -> Instance:
        async def look() -> Instance | None:
            row = await self.read(instance)
            return row if _is(row, wanted) else None

        return await until(look, f"an instance with {wanted}")

    async def until_server(self, server: ServerId, **wanted: Any) -> Server:
        async def look() -> Server | None:
            row = await self.read_server(server)
            return row if _is(row, wanted) else None

        return await until(look, f"a server with {wanted}")

    async def until_posture(self, instance: InstanceId, **wanted: Any) -> Snapshot:
        async def look() -> Snapshot | None:
            row = await self.posture(instance)
            return row if _is(row, wanted) else None

        return await until(look, f"a posture with {wanted}")


def _is(row: Any, wanted: dict[str, Any]) -> bool:
    return all(getattr(row, name) == value for name, value in wanted.items())


def _told(_: object) -> None:
    pass


@pytest.fixture
def tpm_dir() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="tf-tpm-"))  # a socket's path is short
    yield place
    shutil.rmtree(place, ignore_errors=True)


@asynccontextmanager
async def some_machines(
    database: Database,
    database_url: str,
    tpm_dir: Path,
    *,
    name: str = "",
    uri: str = "test:///default",
    provisioner: Provisioner | None = None,
    clock: ManualClock | None = None,
    **parts: Any,
) -> AsyncIterator[Machines]:
    """Start the tree on a hypervisor connection of its own; at the end it dies."""
    pytest.importorskip("libvirt")
    name = name or f"{RUNTIME}-{uuid.uuid4().hex[:8]}"
    events = EventLoop(asyncio.get_running_loop())
    events.start()
    clock = clock or ManualClock()
    runtime = Runtime(clock=clock, answers=(FabricError, AskError))
    with ThreadPoolExecutor(6) as threads, ThreadPoolExecutor(2) as verifying:
        tpms = SoftTpms(tpm_dir, threads)
        machines = Machines(
            runtime=runtime,
            clock=clock,
            database=database,
            database_url=database_url,
            name=name,
            provisioner=provisioner
            or LibvirtProvisioner(uri, events=events, executor=threads, runtime=name),
            tpms=tpms,
            verifying=verifying,
            **parts,
        )
        await runtime.start(machines.spec())
        try:
            yield machines
        finally:
            async with asyncio.timeout(20):
                await runtime.stop()
            await tpms.close()
            events.stop()


@pytest_asyncio.fixture
async def machines(
    database: Database, database_url: str, tpm_dir: Path
) -> AsyncIterator[Machines]:
    async with some_machines(database, database_url, tpm_dir) as started:
        yield started
