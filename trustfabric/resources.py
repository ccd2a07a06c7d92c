"""What the runtime stands on: opened before the tree starts, closed after it."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog

from trustfabric.actors import attestation
from trustfabric.believed import Believed, believed_by
from trustfabric.config import LibvirtSettings, Settings
from trustfabric.db import runtimes
from trustfabric.db.embedded import start_embedded
from trustfabric.db.migrate import migrate
from trustfabric.db.session import Database
from trustfabric.domain.attestation.collateral import Stock
from trustfabric.domain.ports import Provisioner
from trustfabric.domain.vms import ConsoleKind, VolumeTemplate
from trustfabric.drivers.agents import AgentSockets, AgentVsock
from trustfabric.drivers.collateral import CollateralFolder
from trustfabric.drivers.hypervisor import HttpProvisioner
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_connect import Credentials
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_link import THREADS
from trustfabric.drivers.libvirt_xml import VirtType
from trustfabric.drivers.swtpm import SoftTpms
from trustfabric.errors import ConfigError
from trustfabric.http.tokens import Tokens
from trustfabric.keys import held, identity_key_of, runtime_id_of, tokens_of

log = structlog.get_logger(__name__)

TPM_THREADS = 8
VERIFY_THREADS = 2
"""Verification holds the interpreter: its threads only keep the loop answering."""

_VIRT = {"auto": None, "kvm": VirtType.KVM, "qemu": VirtType.QEMU}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Everything that is not an actor and outlives all of them."""

    settings: Settings
    runtime_id: str
    epoch: int
    database_url: str
    database_note: str
    """Where the data is, for people."""
    database: Database
    provisioner: Provisioner
    tpms: SoftTpms
    agents: Mapping[str, attestation.EvidenceSource]
    """Those that are asked from outside their guest, by the name of the way."""
    attestation: attestation.Settings
    collateral: CollateralFolder | None
    verifying: Executor
    blocking: Executor
    """For short blocking work of drivers that have no pool of their own."""
    tokens: Tokens
    listening: socket.socket

    @property
    def url(self) -> str:
        """Where the site listens."""
        if self.settings.http.public_url is not None:
            return self.settings.http.public_url
        host, port = self.listening.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def stock(self) -> Mapping[str, Stock]:
        """Look at the folder of collateral, where there is one."""
        if self.collateral is None:
            return {}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.blocking, self.collateral.stock)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Resources]:
    """Open everything, in order; close it in reverse, whatever happened."""
    believed = believed_by(settings.attestation)
    for warning in believed.warnings:
        log.warning("settings.warning", text=warning)
    async with AsyncExitStack() as stack:
        stack.enter_context(held(settings.data_dir))
        tokens = tokens_of(settings)
        listening = stack.enter_context(_listen(settings))
        database_url, note = await _database_url(settings, stack)
        database = await Database.open(
            database_url, pool_size=settings.database.pool_size
        )
        stack.push_async_callback(database.close)
        await migrate(database_url)
        runtime_id = runtime_id_of(settings.data_dir)
        async with database.writing() as conn:
            epoch = await runtimes.join(
                conn, runtime_id, socket.gethostname(), os.getpid()
            )
        blocking = _pool(stack, "blocking", TPM_THREADS)
        tpms = SoftTpms(settings.data_dir / "tpm", blocking)
        stack.push_async_callback(tpms.close)
        yield Resources(
            settings=settings,
            runtime_id=runtime_id,
            epoch=epoch,
            database_url=database_url,
            database_note=note,
            database=database,
            provisioner=_provisioner(settings, runtime_id, stack),
            tpms=tpms,
            agents=_agents(settings, runtime_id),
            attestation=_attestation(settings, runtime_id, believed),
            collateral=believed.collateral,
            verifying=_pool(stack, "verify", VERIFY_THREADS),
            blocking=blocking,
            tokens=tokens,
            listening=listening,
        )


def _agents(
    settings: Settings, runtime_id: str
) -> Mapping[str, attestation.EvidenceSource]:
    folder = settings.data_dir.resolve() / "agents"
    folder.mkdir(mode=0o711, exist_ok=True)
    return {"virtio": AgentSockets(folder), "vsock": AgentVsock(runtime_id)}


def _pool(stack: AsyncExitStack, name: str, threads: int) -> Executor:
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    stack.callback(pool.shutdown, wait=False, cancel_futures=True)
    return pool


def _listen(settings: Settings) -> socket.socket:
    address = (settings.http.bind_address, settings.http.bind_port)
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=1024)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(
            [f"BIND_ADDRESS, BIND_PORT: {address[0]}:{address[1]}: {reason}"]
        ) from error


async def _database_url(settings: Settings, stack: AsyncExitStack) -> tuple[str, str]:
    if settings.database.url is not None:
        return settings.database.url.get_secret_value(), "the one of DATABASE_URL"
    home = settings.data_dir / "postgres"
    server = await start_embedded(home, binaries=settings.database.postgres_bin)
    stack.push_async_callback(server.stop)
    return server.url, (
        f"embedded PostgreSQL {server.version} in {home}"
        " (set DATABASE_URL to use your own)"
    )


def _provisioner(
    settings: Settings, runtime_id: str, stack: AsyncExitStack
) -> Provisioner:
    if settings.provisioner.driver == "http":
        hypervisor = settings.hypervisor
        assert hypervisor.endpoint is not None  # a fault of the settings otherwise
        return HttpProvisioner(
            hypervisor.endpoint,
            token=None if hypervisor.token is None else lambda: hypervisor.token,
            timeout_s=hypervisor.timeout_s,
        )
    events = EventLoop(asyncio.get_running_loop())
    events.start()
    stack.callback(events.stop)
    return LibvirtProvisioner(
        settings.libvirt.uri,
        events=events,
        executor=_pool(stack, "libvirt", THREADS),
        runtime=runtime_id,
        credentials=_credentials(settings.libvirt),
        virt=_VIRT[settings.libvirt.virt_type],
        scratch=_scratch(settings),
        console=ConsoleKind(settings.libvirt.console_source.kind),
        console_dir=settings.data_dir.resolve() / "console-logs",
        console_lines=settings.libvirt.log_tail,
    )


def _credentials(libvirt: LibvirtSettings) -> Credentials:
    given = libvirt.password is not None or libvirt.password_file is not None
    return Credentials(libvirt.username, libvirt.read_password if given else None)


def _scratch(settings: Settings) -> VolumeTemplate:
    """Return where a guest that tries KVM out may have its disk: beside the others."""
    volume = settings.libvirt.volume
    path = volume.path_for(settings.data_dir.resolve(), "probe", "probe")
    return VolumeTemplate(path=str(path), pool=volume.pool)


def _attestation(
    settings: Settings, runtime_id: str, believed: Believed
) -> attestation.Settings:
    chosen, folder = settings.attestation, believed.collateral
    return attestation.Settings(
        policy=believed.policy,
        anchors=believed.anchors,
        max_age=timedelta(seconds=chosen.max_age_s),
        timeout_s=chosen.timeout_s,
        runtime_id=runtime_id,
        attempts=chosen.attempts,
        identity_key=identity_key_of(settings.data_dir),
        collateral=None if folder is None else folder.read,
    )
