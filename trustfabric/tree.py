"""The supervision tree as one literal, and the addresses that outlive restarts.

An actor asks only what stands before it here, or its own children; upward go
notices and events. So no cycle of waits can form.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from trustfabric.actors.attestation import Attestation
from trustfabric.actors.dispatch import Dispatcher
from trustfabric.actors.evaluations import Scheduler
from trustfabric.actors.holds import Holds
from trustfabric.actors.hypervisor import Hypervisor
from trustfabric.actors.intelligence import Scorer
from trustfabric.actors.ledger import Ledger
from trustfabric.actors.listener import Listener
from trustfabric.actors.metrics import Meter
from trustfabric.actors.playbooks import Playbooks
from trustfabric.actors.policies import Policies
from trustfabric.actors.refreshes import Refresher
from trustfabric.actors.retention import Retention
from trustfabric.actors.runs import RunActor
from trustfabric.actors.servers import Servers
from trustfabric.actors.streams import Broadcaster
from trustfabric.actors.trust import TrustRegistry
from trustfabric.actors.vms import Vm
from trustfabric.http.site import Site
from trustfabric.supervision import (
    Address,
    ChildSpec,
    DynamicAddress,
    DynamicSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)

RESTARTS = 100
"""Of the root within a minute: a chaos matrix must not bring the runtime down."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """How the actors find each other."""

    broadcaster: Address[Broadcaster] = field(
        default_factory=lambda: Address("broadcaster")
    )
    listener: Address[Listener] = field(default_factory=lambda: Address("listener"))
    trust: Address[TrustRegistry] = field(default_factory=lambda: Address("trust"))
    attestation: Address[Attestation] = field(
        default_factory=lambda: Address("attestation")
    )
    policies: Address[Policies] = field(default_factory=lambda: Address("policies"))
    hypervisor: Address[Hypervisor] = field(default_factory=lambda: Address("link"))
    vms: DynamicAddress[Vm] = field(default_factory=lambda: DynamicAddress("vms"))
    servers: Address[Servers] = field(default_factory=lambda: Address("servers"))
    scheduler: Address[Scheduler] = field(
        default_factory=lambda: Address("evaluations")
    )
    refresher: Address[Refresher] = field(default_factory=lambda: Address("refreshes"))
    holds: Address[Holds] = field(default_factory=lambda: Address("holds"))
    ledger: Address[Ledger] = field(default_factory=lambda: Address("ledger"))
    playbooks: Address[Playbooks] = field(default_factory=lambda: Address("playbooks"))
    runs: DynamicAddress[RunActor] = field(
        default_factory=lambda: DynamicAddress("runs")
    )
    dispatcher: Address[Dispatcher] = field(
        default_factory=lambda: Address("dispatcher")
    )
    intelligence: Address[Scorer] = field(
        default_factory=lambda: Address("intelligence")
    )
    retention: Address[Retention] = field(default_factory=lambda: Address("retention"))
    meter: Address[Meter] = field(default_factory=lambda: Address("metrics"))
    api: Address[Site] = field(default_factory=lambda: Address("api"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Makers:
    """How each permanent actor is constructed, anew for every incarnation."""

    broadcaster: Callable[[], Broadcaster]
    listener: Callable[[], Listener]
    trust: Callable[[], TrustRegistry]
    attestation: Callable[[], Attestation]
    policies: Callable[[], Policies]
    hypervisor: Callable[[], Hypervisor]
    servers: Callable[[], Servers]
    scheduler: Callable[[], Scheduler]
    refresher: Callable[[], Refresher]
    holds: Callable[[], Holds]
    ledger: Callable[[], Ledger]
    playbooks: Callable[[], Playbooks]
    dispatcher: Callable[[], Dispatcher]
    intelligence: Callable[[], Scorer]
    retention: Callable[[], Retention]
    meter: Callable[[], Meter]
    api: Callable[[], Site]


def fabric(at: Addresses, make: Makers) -> SupervisorSpec:
    """Return the whole tree: started in this order, stopped in reverse."""
    return SupervisorSpec(
        name="fabric",
        strategy=Strategy.ONE_FOR_ONE,
        max_restarts=RESTARTS,
        within_s=60.0,
        children=(
            SupervisorSpec(
                name="streams",
                strategy=Strategy.REST_FOR_ONE,
                max_restarts=RESTARTS,
                children=(
                    ChildSpec(address=at.broadcaster, start=make.broadcaster),
                    ChildSpec(address=at.listener, start=make.listener),
                ),
            ),
            ChildSpec(address=at.trust, start=make.trust),
            ChildSpec(address=at.attestation, start=make.attestation),
            ChildSpec(address=at.policies, start=make.policies),
            SupervisorSpec(
                name="hypervisors",
                max_restarts=RESTARTS,
                children=(ChildSpec(address=at.hypervisor, start=make.hypervisor),),
            ),
            DynamicSpec(
                address=at.vms, restart=Restart.TRANSIENT, max_restarts=RESTARTS
            ),
            ChildSpec(address=at.servers, start=make.servers),
            ChildSpec(address=at.scheduler, start=make.scheduler),
            ChildSpec(address=at.refresher, start=make.refresher),
            ChildSpec(address=at.holds, start=make.holds),
            ChildSpec(address=at.ledger, start=make.ledger),
            SupervisorSpec(
                name="remediation",
                strategy=Strategy.REST_FOR_ONE,
                max_restarts=RESTARTS,
                children=(
                    ChildSpec(address=at.playbooks, start=make.playbooks),
                    DynamicSpec(address=at.runs, restart=Restart.TEMPORARY),
                    ChildSpec(address=at.dispatcher, start=make.dispatcher),
                ),
            ),
            ChildSpec(address=at.intelligence, start=make.intelligence),
            ChildSpec(address=at.retention, start=make.retention),
            ChildSpec(address=at.meter, start=make.meter),
            ChildSpec(address=at.api, start=make.api),
        ),
    )
