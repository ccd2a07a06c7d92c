"""What handlers work with, under one typed key of the application."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from aiohttp import web

from trustfabric.actors.attestation import Attestation
from trustfabric.actors.bells import Bells
from trustfabric.actors.counters import Counters
from trustfabric.actors.dispatch import Dispatcher
from trustfabric.actors.holds import Holds
from trustfabric.actors.metrics import Meter
from trustfabric.actors.playbooks import Playbooks
from trustfabric.actors.policies import Policies
from trustfabric.actors.refreshes import Refresher
from trustfabric.actors.room import Room
from trustfabric.actors.servers import Servers
from trustfabric.actors.streams import Broadcaster
from trustfabric.actors.trust import TrustRegistry
from trustfabric.db.session import Database
from trustfabric.domain.ids import OwnerId
from trustfabric.domain.ports import Provisioner
from trustfabric.domain.reasons import Rules
from trustfabric.domain.storms import StormLimits
from trustfabric.drivers.ear import KeyFile
from trustfabric.drivers.secrets import Masker
from trustfabric.http.frames import Frames
from trustfabric.http.jwks import Jwks
from trustfabric.http.tokens import Tokens
from trustfabric.supervision import Address, Runtime

ASK_S = 15.0
"""How long a handler waits for an actor; a longer wait is 504."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of the front end, from the settings."""

    history_max: int
    stream_buffer: int
    heartbeat_s: float
    log_tail: int


class Closing(Protocol):
    """Something open that can be told to end."""

    def close(self) -> None:
        """End it; fine when it has."""


@dataclass(frozen=True, slots=True)
class Face:
    database: Database
    trust: Address[TrustRegistry]
    broadcaster: Address[Broadcaster]
    attestation: Address[Attestation]
    policies: Address[Policies]
    bells: Bells
    """Agents wait at them for their next challenge."""
    servers: Address[Servers]
    dispatcher: Address[Dispatcher]
    holds: Address[Holds]
    playbooks: Address[Playbooks]
    refresher: Address[Refresher]
    meter: Address[Meter]
    provisioner: Provisioner
    runtime: Runtime
    tokens: Tokens
    limits: Limits
    storm_limits: StormLimits
    rules: Rules
    chaos: bool
    runtime_id: str
    url: Callable[[], str]
    """Where the site can be reached from outside."""
    ear_key: KeyFile
    """What signs attestation results."""
    now: Callable[[], datetime]
    room: Room
    """For what all streams together leave lying."""
    counters: Counters
    masker: Callable[[Mapping[str, Any]], Masker]
    """Hides the secrets that a playbook's metadata refers to."""
    metrics_open: bool = False
    """Whether metrics are for everybody who can connect."""
    streams: set[Closing] = field(default_factory=set)
    """Open streams, to be ended before the site stops."""
    sockets: dict[Closing, asyncio.WriteTransport] = field(default_factory=dict)
    """What open streams are written to."""
    frames: Frames = field(default_factory=Frames)
    jwks: Jwks = field(default_factory=Jwks)
    published_keys: set[str] = field(default_factory=set)
    """By kid: those of ours that the JWKS has."""
    known_users: set[OwnerId] = field(default_factory=set)


FACE: web.AppKey[Face] = web.AppKey("face", Face)
