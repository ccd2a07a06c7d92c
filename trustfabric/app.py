"""The composition root: settings → resources → tree → run until told to stop."""

import asyncio
import gc
import secrets
import shlex
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import structlog

from trustfabric import log as logs
from trustfabric.actors.attestation import Attestation
from trustfabric.actors.counters import Counters
from trustfabric.actors.dispatch import Dispatcher
from trustfabric.actors.equipment import Equipment
from trustfabric.actors.evaluations import Cadence, Scheduler
from trustfabric.actors.holds import Holds
from trustfabric.actors.hypervisor import Renew, hypervisor_maker
from trustfabric.actors.intelligence import Scorer
from trustfabric.actors.launcher import Fleet
from trustfabric.actors.ledger import Ledger
from trustfabric.actors.listener import Listener
from trustfabric.actors.metrics import Meter
from trustfabric.actors.orders import Desk
from trustfabric.actors.playbooks import Playbooks
from trustfabric.actors.policies import Policies
from trustfabric.actors.refreshes import Refresher, Rhythm
from trustfabric.actors.retention import Retention
from trustfabric.actors.room import Room
from trustfabric.actors.runs import RunTools
from trustfabric.actors.servers import Gone, Servers
from trustfabric.actors.streams import Broadcaster, Feed, Stream
from trustfabric.actors.trust import TrustRegistry
from trustfabric.config import Settings
from trustfabric.db import boots, hold_events, listen, run_events, trust_events
from trustfabric.db.intelligence import Changes
from trustfabric.db.session import Database
from trustfabric.domain.allow_list import AllowList
from trustfabric.domain.dispatch import DispatchSettings
from trustfabric.domain.executors import Executor
from trustfabric.domain.power import Hold
from trustfabric.domain.reasons import Rules
from trustfabric.domain.refreshes import RefreshSettings
from trustfabric.domain.runs import RetryPolicy, Run
from trustfabric.domain.specs import ExecutorType
from trustfabric.domain.storms import StormLimits
from trustfabric.drivers.ansible import NEEDED, AnsibleExecutor
from trustfabric.drivers.cloud_api import CloudExecutor
from trustfabric.drivers.pinned import PinnedClient
from trustfabric.drivers.secrets import Secrets, masker_of
from trustfabric.drivers.shell import ShellExecutor
from trustfabric.drivers.workplace import ProgramSettings, Workplace, sweep
from trustfabric.errors import ConfigError, FabricError
from trustfabric.http.face import Face, Limits
from trustfabric.http.site import Site
from trustfabric.http.tokens import Tokens
from trustfabric.keys import ear_key_of, issue_token, keep
from trustfabric.launches import Launches
from trustfabric.resources import Resources, opened
from trustfabric.supervision import AskError, Runtime
from trustfabric.tree import Addresses, Makers, fabric

log = structlog.get_logger(__name__)

STOP_S = 10.0
TOKEN_S = 86_400
LEASE_S = 60.0
"""Of a certification's refresh, beside what two challenges may take."""
FEEDS = (
    Feed(Stream.TRUST, listen.TRUST_CHANNEL, trust_events.events_after),
    Feed(Stream.REMEDIATION, listen.REMEDIATION_CHANNEL, run_events.events_after),
    Feed(Stream.HOLDS, hold_events.CHANNEL, hold_events.events_after),
)


def serve(settings: Settings) -> int:
    """Run the runtime in the foreground; return the exit code.

    0 after SIGTERM or SIGINT; 1 when the tree gave up or something it stands on is
    not to be had; 2 for settings that can't be used.
    """
    logs.set_up(settings.log.level, settings.log.format)
    for warning in settings.warnings:
        log.warning("settings.warning", text=warning)
    try:
        return asyncio.run(_serve(settings))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except FabricError as error:
        sys.stderr.write(f"cannot start: {error}\n")
        return 1


async def _serve(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    at = Addresses()
    loop.add_signal_handler(signal.SIGHUP, lambda: _told(at.hypervisor.tell(Renew())))
    async with opened(settings) as resources:
        if killed := sweep(settings.data_dir.resolve() / "runs"):
            log.warning("programs.swept", killed=killed)
        runtime = Runtime(answers=(FabricError, AskError))
        await runtime.start(fabric(at, _makers(resources, runtime, at)))
        gc.freeze()  # to look through all this again would stop every stream
        _announce(resources)
        told = asyncio.create_task(stop.wait())
        ended = asyncio.create_task(runtime.wait())
        await asyncio.wait((told, ended), return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if ended.done():
            log.error("runtime.gave-up", reason=ended.result())
            return 1
        await runtime.stop(STOP_S)
    return 0


def _announce(resources: Resources) -> None:
    settings = resources.settings
    token = issue_token(settings, 1, "operator", TOKEN_S)
    token_file = keep(settings.data_dir / "operator-token", token)
    program = str(Path(sys.executable).with_name("mcpctl"))
    mcpctl = shlex.join(
        [program, "--host", resources.url, "--token-file", str(token_file)]
    )
    lines: Sequence[str] = (
        f"database: {resources.database_note}",
        f"hypervisor: {resources.provisioner.endpoint}"
        + (" (simulated)" if resources.provisioner.simulated else ""),
        f"policy: {resources.attestation.policy.id}",
        f"listening: {resources.url}",
        f"dashboard: {resources.url}/",
        f"shell: {mcpctl} shell",
        f"token: {token}",
    )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _makers(use: Resources, runtime: Runtime, at: Addresses) -> Makers:
    settings, database, counters = use.settings, use.database, Counters()
    equipment = Equipment(
        database=database,
        provisioner=use.provisioner,
        hypervisor=at.hypervisor,
        trust=at.trust,
        attestation=at.attestation,
        tpms=use.tpms,
        spec_of=_launches(use).spec_of,
        quarantine_action=Hold(settings.provisioner.quarantine_action),
        epoch=use.epoch,
        new_boot_id=uuid.uuid4,
        gone=lambda instance_id: _told(at.servers.tell(Gone(instance_id))),
    )
    fleet = Fleet(
        database=database,
        trust=at.trust,
        broadcaster=at.broadcaster,
        vms=at.vms,
        equipment=equipment,
        new_instance=_launches(use).new_instance,
        runtime_id=use.runtime_id,
        epoch=use.epoch,
    )
    return Makers(
        broadcaster=lambda: Broadcaster(database, FEEDS, use.runtime_id),
        listener=lambda: Listener(
            database,
            at.broadcaster,
            FEEDS,
            use.runtime_id,
            lambda channels: listen.Wakeups.open(use.database_url, channels),
        ),
        trust=lambda: TrustRegistry(database, counters),
        attestation=lambda: Attestation(
            database,
            at.trust,
            {"swtpm": use.tpms, **use.agents},
            use.attestation,
            use.verifying,
            secrets.token_bytes,
        ),
        policies=lambda: Policies(
            database, at.attestation, use.attestation, use.verifying
        ),
        hypervisor=hypervisor_maker(use.provisioner, partial(_add_reboots, database)),
        servers=lambda: Servers(fleet),
        scheduler=lambda: Scheduler(
            database, at.trust, at.attestation, _cadence(settings), use.runtime_id
        ),
        refresher=lambda: Refresher(
            database, at.attestation, at.broadcaster, _rhythm(use)
        ),
        holds=lambda: Holds(
            database,
            _storm_limits(settings),
            use.runtime_id,
            tick_s=settings.remediation.tick_s,
        ),
        ledger=lambda: Ledger(database),
        playbooks=lambda: Playbooks(database),
        dispatcher=lambda: _dispatcher(use, at),
        intelligence=lambda: Scorer(
            database,
            lambda: Changes.of(use.database_url),
            timedelta(seconds=settings.attestation.max_age_s),
        ),
        meter=lambda: Meter(database, at.broadcaster, counters, use.stock),
        retention=lambda: Retention(database, _retention(settings)),
        api=lambda: Site(_face(use, runtime, at, counters), lambda: use.listening),
    )


async def _add_reboots(database: Database, heard: Mapping[str, int]) -> None:
    async with database.writing() as conn:
        await boots.add_reboots(conn, heard)


def _launches(use: Resources) -> Launches:
    return Launches(
        settings=use.settings.libvirt,
        provisioner=use.provisioner,
        data_dir=str(use.settings.data_dir.resolve()),
        runtime_id=use.runtime_id,
        epoch=use.epoch,
        policy_id=use.attestation.policy.id,
    )


def _retention(settings: Settings) -> timedelta | None:
    days = settings.database.retention_days
    return None if days is None else timedelta(days=days)


def _storm_limits(settings: Settings) -> StormLimits:
    chosen = settings.remediation
    return StormLimits(
        minimum=chosen.breaker_minimum,
        percent=chosen.breaker_percent,
        number=chosen.breaker_number,
        window=timedelta(seconds=chosen.breaker_window_s),
    )


def _rules(settings: Settings) -> Rules:
    chosen, known = settings.remediation, set(ExecutorType)
    if not all(map(find_spec, NEEDED)):
        known.remove(ExecutorType.ANSIBLE)
    return Rules(
        max_attempts=chosen.max_attempts,
        default_playbook=chosen.default_playbook,
        executors=frozenset(known),
    )


def _cadence(settings: Settings) -> Cadence:
    max_age = settings.attestation.max_age_s
    return Cadence(
        tick_s=min(settings.scheduler.tick_s, max_age / 4),
        ahead=timedelta(seconds=max_age / 2),
        quiet=timedelta(seconds=min(30.0, max_age / 4)),
        longest=timedelta(seconds=max_age),
    )


def _rhythm(use: Resources) -> Rhythm:
    chosen = use.settings.scheduler
    return Rhythm(
        runtime_id=use.runtime_id,
        tick_s=chosen.tick_s,
        refresh=RefreshSettings(
            cadence=timedelta(seconds=chosen.cadence_s),
            look_ahead=timedelta(seconds=chosen.look_ahead_s),
            lease=timedelta(seconds=LEASE_S + 2 * use.settings.attestation.timeout_s),
        ),
    )


def _told(_: object) -> None:
    """Drop whether a notice was delivered: a dead letter is counted where it dies."""


def _dispatcher(use: Resources, at: Addresses) -> Dispatcher:
    chosen = use.settings.remediation
    tools = RunTools(
        database=use.database,
        trust=at.trust,
        ledger=at.ledger,
        attestation=at.attestation,
        executors=_executors(use),
        issue_token=lambda run, expires: _run_token(use.tokens, run, expires),
        retry=RetryPolicy(
            limit=chosen.retry_limit,
            base_s=chosen.retry_base_s,
            longest_s=chosen.retry_max_s,
        ),
        lease_s=chosen.lease_s,
    )
    settings = DispatchSettings(
        runtime_id=use.runtime_id,
        default_playbook=chosen.default_playbook,
        requester_may_approve=chosen.requester_may_approve,
        max_attempts=chosen.max_attempts,
        concurrency=chosen.concurrency,
        owner_concurrency=chosen.owner_concurrency,
        tick_s=chosen.tick_s,
        approval_ttl_s=chosen.approval_ttl_s,
        queue_ttl_s=chosen.queue_ttl_s,
    )
    desk = Desk(use.database, at.trust)
    return Dispatcher(desk, tools, at.broadcaster, at.holds, at.runs, settings)


def _secrets(settings: Settings) -> Secrets:
    chosen = settings.executor
    values = {name: one.get_secret_value() for name, one in chosen.secrets.items()}
    return Secrets(values, chosen.secrets_dir)


def _executors(use: Resources) -> dict[ExecutorType, Executor]:
    chosen, data_dir = use.settings.executor, use.settings.data_dir.resolve()
    secrets = _secrets(use.settings)
    settings = ProgramSettings(
        root=data_dir / "runs",
        hidden=data_dir,
        url=lambda: use.url,
        user=chosen.user,
        unsandboxed=chosen.unsandboxed,
        path=chosen.path,
    )
    workplace = Workplace(settings, secrets, use.blocking)
    client = PinnedClient(AllowList.of(chosen.allowed_hosts))
    return {
        ExecutorType.SHELL: ShellExecutor(workplace),
        ExecutorType.ANSIBLE: AnsibleExecutor(workplace),
        ExecutorType.CLOUD_API: CloudExecutor(client, secrets),
    }


def _run_token(tokens: Tokens, run: Run, expires: datetime) -> str:
    """Return what a run's program may call the runtime with; http/app.py limits it."""
    return tokens.issue(
        {
            "sub": str(run.owner_id),
            "role": "run",
            "exp": expires,
            "run": run.id,
            "instance": run.instance_id,
            "server": run.server_id,
            "epoch": run.lease_epoch,
        }
    )


def _face(use: Resources, runtime: Runtime, at: Addresses, counters: Counters) -> Face:
    http = use.settings.http
    return Face(
        database=use.database,
        trust=at.trust,
        broadcaster=at.broadcaster,
        attestation=at.attestation,
        policies=at.policies,
        bells=use.attestation.bells,
        servers=at.servers,
        dispatcher=at.dispatcher,
        holds=at.holds,
        playbooks=at.playbooks,
        refresher=at.refresher,
        meter=at.meter,
        provisioner=use.provisioner,
        runtime=runtime,
        tokens=use.tokens,
        limits=Limits(
            history_max=http.history_limit_max,
            stream_buffer=http.stream_buffer,
            heartbeat_s=http.heartbeat_s,
            log_tail=use.settings.libvirt.log_tail,
        ),
        storm_limits=_storm_limits(use.settings),
        rules=_rules(use.settings),
        chaos=use.settings.chaos.enabled,
        runtime_id=use.runtime_id,
        url=lambda: use.url,
        ear_key=ear_key_of(use.settings.data_dir),
        now=lambda: datetime.now(UTC),
        room=Room(http.stream_room),
        counters=counters,
        masker=partial(masker_of, _secrets(use.settings)),
        metrics_open=http.metrics_open,
    )
