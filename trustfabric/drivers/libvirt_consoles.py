"""The consoles of one hypervisor's guests: opened, read, followed, kept in files."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeVar

import structlog

from trustfabric.domain.ports import ConsoleItem, ConsoleTail
from trustfabric.domain.vms import ConsoleKind, ConsoleSource
from trustfabric.drivers.console_files import ConsoleFile
from trustfabric.drivers.console_lines import LineRing
from trustfabric.drivers.libvirt_console import Console
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_link import Link
from trustfabric.drivers.libvirt_ours import Ours
from trustfabric.errors import UnavailableError

T = TypeVar("T")

log = structlog.get_logger(__name__)

AT_ONCE: Final = 50
"""Consoles that are opened in one call: over a network each takes tens of ms."""
OPENING_S: Final = 5.0
"""How long one look goes on opening consoles."""
NEW_BOOT: Final = "a new boot"
REBOOTED: Final = "the guest rebooted"
OPENED_AGAIN: Final = "the console was opened again: lines between may be missing"


class Consoles:
    """Every guest's console by the guest's name, made when it is first needed."""

    def __init__(
        self,
        binding: Any,
        events: EventLoop,
        *,
        here: bool,
        keep: int,
        folder: Path | None,
        new: ConsoleKind | None,
    ) -> None:
        """Keep `keep` lines each in memory, and more in files of `folder`.

        The hypervisor is on this host where `here` says so; `new` guests get that kind.
        """
        self._binding = binding
        self._events = events
        self._here = here
        self._keep = keep
        self._folder = folder
        self._new = new
        self._consoles: dict[str, Console] = {}
        self._making = Lock()
        self._tried = 0

    def get(self, name: str) -> Console | None:
        return self._consoles.get(name)

    def of(self, name: str) -> Console:
        """Return it with the lines that are in its file; blocks to read them."""
        with self._making:
            console = self._consoles.get(name)
            if console is None:
                console = self._consoles[name] = self._make(name)
            return console

    def boot(self, conn: Any, uuid: str, name: str) -> None:
        """Open it for a guest that is about to run, whatever was open; blocks."""
        console = self.of(name)
        console.detach()
        console.attach(conn, uuid, NEW_BOOT)

    async def read_all(self, link: Link, seen: Iterable[Ours]) -> None:
        """Open every guest's console and keep it open: what isn't read is lost."""
        running = {it.name: it.uuid for it in seen if it.seen.power.active}
        known = self._consoles
        closed = {
            name: uuid
            for name, uuid in running.items()
            if name not in known or not known[name].attached
        }
        until = self._events.time() + OPENING_S
        for batch in batched(self._in_turn(list(closed)), AT_ONCE):
            try:
                await self.open(link, {name: closed[name] for name in batch})
            except UnavailableError:
                return  # the next look tries again
            self._tried += len(batch)
            if self._events.time() > until:
                return  # the next look goes on
        self._compare(running)

    def _in_turn(self, names: list[str]) -> list[str]:
        """Begin where the last look left off: some may never open."""
        first = self._tried % (len(names) or 1)
        return names[first:] + names[:first]

    async def open(self, link: Link, uuids: Mapping[str, str]) -> None:
        """Open those, by name, that aren't open; a few, as others wait meanwhile."""

        def attach(conn: Any) -> None:
            for name, uuid in uuids.items():
                self.of(name).attach(conn, uuid, OPENED_AGAIN)

        await link.call(
            f"opening {len(uuids)} consoles", lambda _: link.with_watch(attach)
        )

    def _compare(self, names: Iterable[str]) -> None:
        """Say, once, which of those run with another kind than new ones get."""
        kind, self._new = self._new, None
        known = [(n, self._consoles[n]) for n in names if n in self._consoles]
        others = [n for n, it in known if kind and it.source.kind is not kind]
        if others:
            log.warning(
                "hypervisor.console-source-differs",
                configured=kind,
                running_with_another=len(others),
                such_as=others[0],
                mend="each changes over at its next boot",
            )

    def note_reboot(self, name: str) -> None:
        console = self._consoles.get(name)
        if console is not None:
            console.ring.break_with(REBOOTED)

    def detach(self) -> None:
        """Close every stream; blocks."""
        for console in tuple(self._consoles.values()):
            console.detach()

    def drop(self) -> None:
        """Forget the streams of a lost link."""
        for console in tuple(self._consoles.values()):  # threads make new ones
            console.drop()

    def remove(self, name: str) -> None:
        """Delete what was kept, and end whoever follows it; blocks."""
        with self._making:
            console = self._consoles.pop(name, None)
        if console is not None:
            console.detach()
            console.drop()
        if (file := self._file(name)) is not None:
            file.remove()

    def tail(self, name: str, lines: int, source: ConsoleSource | None) -> ConsoleTail:
        console = self._consoles[name]
        position = console.ring.count
        tail = console.ring.tail(lines)
        why = None if tail or lines <= 0 else _why_empty(console, source)
        return ConsoleTail(tail, why, position)

    async def follow(
        self, name: str, after: int | None, beat_s: float
    ) -> AsyncGenerator[Sequence[ConsoleItem], None]:
        console = self._consoles[name]
        newest = console.ring.count
        position = newest if after is None else after
        if position > newest:
            position = 0  # of another life of it: everything is news
        while self._consoles.get(name) is console:
            changed = console.next_change()
            items = console.ring.since(position)
            if not items:
                await _within(beat_s, changed)
                items = console.ring.since(position)
            if items:
                position = items[-1].seq
            if items or not changed.is_set():
                yield items

    def _make(self, name: str) -> Console:
        file = self._file(name)
        if file is None:
            ring = LineRing(self._keep)
        else:
            ring = LineRing(self._keep, known=file.read(), keep=file.append)
        return Console(self._binding, self._events, ring, here=self._here)

    def _file(self, name: str) -> ConsoleFile | None:
        return None if self._folder is None else ConsoleFile(self._folder / name)


def batched(items: Iterable[T], most: int) -> Iterator[tuple[T, ...]]:
    """Cut into pieces; as itertools has it from Python 3.12 on."""
    left = iter(items)
    while piece := tuple(islice(left, most)):
        yield piece


def _why_empty(console: Console, wanted: ConsoleSource | None) -> str:
    has = console.source.kind
    if console.attached and has is ConsoleKind.FILE:
        why = (
            f"nothing was printed to {console.source.path}: where its guest does "
            "print, virtlogd may not run, which writes that file for QEMU"
        )
    elif console.attached:
        why = "nothing was printed since the console was opened"
    else:
        why = console.why_not or "its console has ended"
    if wanted is not None and wanted.kind is not has:
        why = (
            f"LIBVIRT_CONSOLE_SOURCE is {wanted.kind}, but the VM was defined with "
            f"{has} and gets the other at its next boot: {why}"
        )
    return why


async def _within(beat_s: float, changed: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(beat_s):
            await changed.wait()
    except TimeoutError:
        return
