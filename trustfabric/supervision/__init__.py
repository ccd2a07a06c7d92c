"""OTP's supervision for pykka actors on one asyncio loop. See README.md."""

from trustfabric.supervision import exits
from trustfabric.supervision.actor import Actor
from trustfabric.supervision.address import Address, DynamicAddress
from trustfabric.supervision.clock import Clock, ManualClock, SystemClock
from trustfabric.supervision.deadletters import DeadLetter, DeadLetters
from trustfabric.supervision.errors import (
    ActorCrashedError,
    ActorDeadError,
    ActorKilledError,
    AskCycleError,
    AskError,
    AskTimeoutError,
    GaveUpError,
    MailboxFullError,
    WouldDeadlockError,
)
from trustfabric.supervision.exits import Exit, ExitKind
from trustfabric.supervision.mailbox import MailboxSpec, Overflow
from trustfabric.supervision.messages import Notice, Request
from trustfabric.supervision.report import ActorReport, RestartReport
from trustfabric.supervision.runtime import Runtime
from trustfabric.supervision.simulation import Simulated, Simulation, simulate
from trustfabric.supervision.spec import (
    AutoShutdown,
    Backoff,
    ChildSpec,
    DynamicSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)
from trustfabric.supervision.states import State
from trustfabric.supervision.tally import Counts, Histogram
from trustfabric.supervision.timers import Down, Timer, Watch
from trustfabric.supervision.trace import Event, Trace, TraceEvent
from trustfabric.supervision.watchdog import Held

__all__ = [
    "Actor",
    "ActorCrashedError",
    "ActorDeadError",
    "ActorKilledError",
    "ActorReport",
    "Address",
    "AskCycleError",
    "AskError",
    "AskTimeoutError",
    "AutoShutdown",
    "Backoff",
    "ChildSpec",
    "Clock",
    "Counts",
    "DeadLetter",
    "DeadLetters",
    "Down",
    "DynamicAddress",
    "DynamicSpec",
    "Event",
    "Exit",
    "ExitKind",
    "GaveUpError",
    "Held",
    "Histogram",
    "MailboxFullError",
    "MailboxSpec",
    "ManualClock",
    "Notice",
    "Overflow",
    "Request",
    "Restart",
    "RestartReport",
    "Runtime",
    "Simulated",
    "Simulation",
    "State",
    "Strategy",
    "SupervisorSpec",
    "SystemClock",
    "Timer",
    "Trace",
    "TraceEvent",
    "Watch",
    "WouldDeadlockError",
    "exits",
    "simulate",
]
