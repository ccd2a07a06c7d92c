"""The Protocols of drivers: what actors may ask of a hypervisor.

Errors are FabricErrors. UnavailableError: the link is down or slow, the same call
may work later (`facts["cause"] == "credentials"` when it refused ours). What
`domain.vms.is_structural` accepts will not get better by itself.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from trustfabric.domain.attestation.launch import Launch
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.power import Seen
from trustfabric.domain.vms import IsolationTier, PowerEvent, VmSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Defined:
    """What a hypervisor made of a specification."""

    hypervisor_name: str
    """How every other call names the VM."""
    tier: IsolationTier
    """As the hypervisor confirms it: always the one asked for."""
    attestation_hint: str | None = None
    simulated: bool = False
    """Nothing runs: isolation claims of this VM count for nothing."""
    adopted: bool = False
    """It was there already, ours and as specified."""
    notes: tuple[str, ...] = ()
    """For `capability_notes`."""
    launch: Launch | None = None
    """What a guest with a launch digest must report, or why that isn't known."""


@dataclass(frozen=True, slots=True)
class ConsoleTail:
    """The newest console lines, oldest first, without line ends or escapes."""

    lines: tuple[str, ...]
    why_empty: str | None = None
    """Set when there are no lines and a reason is known."""
    position: int = 0
    """What to follow from so that no line is missed or comes twice."""
    live: bool = True
    """More may come; otherwise following ends at once."""


@dataclass(frozen=True, slots=True)
class ConsoleEntry:
    """One line of a console, or a break between two."""

    seq: int
    """1, 2, 3 … for each instance, through restarts of ours."""
    text: str
    breaks: bool = False
    """No line: what comes next doesn't continue what came, and `text` says why."""


@dataclass(frozen=True, slots=True)
class ConsoleGap:
    """Lines that were forgotten before this reader came to them."""

    first: int
    seq: int
    """The last of them."""


ConsoleItem = ConsoleEntry | ConsoleGap


class Provisioner(Protocol):
    """A hypervisor's link; opened again after each loss, by whoever owns it."""

    @property
    def name(self) -> str:
        """`libvirt` or `http`: the `driver` column."""

    @property
    def endpoint(self) -> str:
        """Where it connects, without secrets: the `hypervisor_endpoint` column."""

    @property
    def credentials(self) -> Mapping[str, object]:
        """Snapshot without secrets: the `hypervisor_credentials` column."""

    @property
    def simulated(self) -> bool:
        """Its domains don't run anything."""

    @property
    def volatile(self) -> bool:
        """Its domains die with our process and are defined afresh after it."""

    @property
    def observes(self) -> bool:
        """`observe` is a whole snapshot: who is missing in it is gone.

        When false it only echoes what this driver did since it was made.
        """

    @property
    def pauses(self) -> bool:
        """`pause` and `resume` work; otherwise they raise UnsupportedError."""

    async def open(
        self,
        on_event: Callable[[PowerEvent], None],
        on_lost: Callable[[str], None],
    ) -> None:
        """Connect; both callbacks come on the event loop, never inside a call.

        `on_lost(reason)` comes at most once per opening: from then on every call
        raises UnavailableError until the next `open`. Events of an earlier opening
        are never delivered.
        """

    async def renew(self) -> None:
        """Connect with the secrets as they are now, then let go of the old link.

        Where that fails it raises, and the old link stays as it was.
        """

    async def close(self) -> None:
        """Let go of the link; domains are left as they are."""

    async def define(self, spec: VmSpec) -> Defined:
        """Make it known, not running. Safe to repeat after any failure.

        ConflictError when a stranger has its name or UUID; UnsupportedError when
        its tier can't be had here; InvalidError when the hypervisor made less of
        it than asked. A refusal leaves all as it was.
        """

    async def start(self, name: str, boot: UUID) -> None:
        """Boot it, or resume it if paused, marked as `boot` where it `observes`.

        AlreadyRunningError, NotFoundError; UnavailableError where it ended at once.
        """

    async def adopt(self, name: str, boot: UUID) -> None:
        """Mark what somebody else began as `boot`.

        InvalidError where it isn't what `define` asked for: it is switched off then.
        ConflictError when off, NotFoundError.
        """

    async def mark(self, name: str, boot: UUID) -> None:
        """Mark what runs as `boot`. ConflictError when off, NotFoundError."""

    async def stop(self, name: str, *, grace_s: float) -> None:
        """Ask the guest to stop, cut the power after `grace_s`.

        Returns when it is off; fine when it was. NotFoundError.
        """

    async def pause(self, name: str) -> None:
        """Freeze its processors; fine when they are. ConflictError when off."""

    async def resume(self, name: str) -> None:
        """Undo `pause`; fine when it runs. ConflictError when off."""

    async def undefine(self, name: str, spec: VmSpec | None = None) -> None:
        """Switch off at once, remove with its disk, firmware and TPM state.

        Fine if gone: what `spec` says was made for it is removed all the same.
        """

    async def forget(self, spec: VmSpec) -> None:
        """Delete the seed of one that others removed: its secrets.

        Its disk is left, to whoever did that.
        """

    async def observe(self) -> Mapping[str, Seen]:
        """Return every domain of ours (strangers never appear) as it is."""

    async def look(self, name: str) -> Seen | None:
        """Return one domain as it is now; None where it isn't ours."""

    async def console_tail(self, name: str, lines: int) -> ConsoleTail:
        """Return up to `lines` newest lines. NotFoundError."""

    def console_follow(
        self, name: str, *, after: int | None = None, beat_s: float = 15.0
    ) -> AsyncGenerator[Sequence[ConsoleItem], None]:
        """Yield what comes after position `after`, else from now on, in batches.

        Each `beat_s` of silence yields an empty one. It goes on while the VM is off
        or the link is down, where the hypervisor allows it; ends with the console.
        NotFoundError.
        """


class Tpm(Protocol):
    """The software TPM beside an instance, where its configuration asks for one."""

    async def start(self, name: str) -> None:
        """Boot it afresh: what was extended is reset, its keys are the same."""

    async def enroll(self, name: str) -> EnrolledKey:
        """Return its attestation key."""
        ...

    async def stop(self, name: str) -> None:
        """Switch it off; fine when it was."""

    async def remove(self, name: str) -> None:
        """Switch it off and delete its state."""
