"""What is done to the product, and the proof that it was done and came back."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from trustfabric.errors import UnavailableError
from trustfabric.scenarios.client import Person, RefusedError
from trustfabric.scenarios.steps import FailedError

ACTORS = "/api/system/actors"
RUNS_PATH = "fabric/remediation/runs/"
"""Whose actors are temporary: a killed one does not come back."""
_LOOK_S = 0.05
_FIND_S = 10.0
_RESTART_S = 60.0
"""An actor that is killed again and again waits longer and longer."""
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Killed:
    """An actor that was killed."""

    path: str
    epoch: int
    """Which incarnation it was."""
    at: float


async def kill_actor(admin: Person, pattern: str) -> Killed:
    """Kill the one living actor that `pattern` names, as an admin does."""
    victim = await _find(admin, pattern)
    killed = Killed(victim["path"], victim["epoch"], time.monotonic())
    try:
        await admin.once(f"{ACTORS}/{killed.path}/kill")
    except UnavailableError:
        pass  # it took the answer with it
    except RefusedError as error:
        if error.status != _NOT_FOUND:
            raise
        raise FailedError(f"{killed.path} was gone before it was killed") from error
    return killed


async def _find(admin: Person, pattern: str) -> dict[str, Any]:
    """Return the actor; one that another fault has just taken is waited for."""
    started = time.monotonic()
    while True:
        actors = await admin.get(ACTORS)
        found = [one for one in actors if fnmatchcase(one["path"], pattern)]
        for actor in found:
            if actor["state"] == "running":
                return dict(actor)
        patience_s = _RESTART_S if found else _FIND_S
        if time.monotonic() >= started + patience_s:
            raise FailedError(
                f"{found[0]['path']} stays {found[0]['state']}"
                if found
                else f"no actor {pattern}: the fault came too late"
            )
        await asyncio.sleep(_LOOK_S)


async def came_back(admin: Person, killed: Killed, within_s: float) -> None:
    """Wait for the next incarnation; where there is none by design, for its end."""
    while True:
        actors = {one["path"]: one for one in await admin.get(ACTORS)}
        actor = actors.get(killed.path)
        if _is_back(killed, actor):
            return
        if time.monotonic() >= killed.at + within_s:
            state = actor["state"] if actor else "gone"
            told = f"{killed.path} is {state} {within_s:g} s after it was killed"
            raise FailedError(told)
        await asyncio.sleep(_LOOK_S)


def _is_back(killed: Killed, actor: dict[str, Any] | None) -> bool:
    if actor is None:
        return killed.path.startswith(RUNS_PATH)
    return bool(actor["epoch"] > killed.epoch and actor["state"] == "running")


class ExecutorOutage:
    """While anybody holds it no program can be started: there is no place for one."""

    def __init__(self, data_dir: Path) -> None:
        self._place = data_dir / "runs"
        self._aside = data_dir / "runs.away"
        self._holders = 0
        self._is_over = asyncio.Event()
        self._is_over.set()

    @asynccontextmanager
    async def lasting(self) -> AsyncIterator[None]:
        """Have the outage while the block runs, and until the last such block ends."""
        if self._holders == 0:
            self._begin()
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if self._holders == 0:
                self._end()
        await self._is_over.wait()

    def _begin(self) -> None:
        self._is_over.clear()
        self._place.mkdir(mode=0o711, exist_ok=True)
        self._place.rename(self._aside)
        self._place.touch()

    def _end(self) -> None:
        self._place.unlink()
        self._aside.rename(self._place)
        self._is_over.set()
