"""Where a run's program works: its private directory, its environment, its account.

<root>/<run>-<epoch>/   0700, of the account that the program runs as
    run.json            what the run is about
    output/             what is in it at the end is kept as artifacts
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor as Threads
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from trustfabric.domain.executors import Job
from trustfabric.domain.ids import RunId
from trustfabric.domain.spec_fields import SECRET_PREFIX
from trustfabric.drivers.confinement import (
    ProgramLimits,
    account_for,
    confinement,
    is_reachable,
)
from trustfabric.drivers.leavings import Leavings, LeavingsLimits, collect
from trustfabric.drivers.output import OutputLimits
from trustfabric.drivers.secrets import Masker, Secrets
from trustfabric.drivers.subprocesses import Account, Launch, kill_marked
from trustfabric.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSettings:
    """Where and as whom programs run."""

    root: Path
    """Holds a private directory for each attempt of a run."""
    hidden: Path
    """What a sandboxed program may not see: the runtime's data directory."""
    url: Callable[[], str]
    """Where the runtime listens, known once it does."""
    user: str = "nobody"
    unsandboxed: bool = False
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    limits: ProgramLimits = field(default_factory=ProgramLimits)
    output: OutputLimits = field(default_factory=OutputLimits)
    leavings: LeavingsLimits = field(default_factory=LeavingsLimits)


@dataclass(frozen=True, slots=True)
class Place:
    """One attempt's private directory."""

    folder: Path
    here: str
    """How its program names it: `.` where the way to it is barred."""
    account: Account | None
    needs: tuple[Path, ...] = ()
    """What its program has to reach by name; itself is then among it."""

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def write(self, name: str, content: bytes, mode: int = 0o400) -> str:
        """Put a file into it, the account's; return how its program names it."""
        path = self.folder / name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            file.write(content)
            if self.account is not None:
                os.fchown(file.fileno(), self.account.uid, self.account.gid)
        return f"{self.here}/{name}"

    def make_folder(self, name: str) -> str:
        """Make a folder in it; return how its program names it."""
        path = self.folder / name
        path.mkdir(mode=0o700)
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)
        return f"{self.here}/{name}"


def sweep(root: Path) -> int:
    """Kill and remove what an earlier runtime left of any run; none may be at work.

    Return how many processes there still were.
    """
    killed = kill_marked(_installation(root))
    for folder in root.glob("*-*"):
        shutil.rmtree(folder, ignore_errors=True)
    return killed


class Workplace:
    """Makes the places of attempts, and removes them with all that is in them."""

    def __init__(
        self, settings: ProgramSettings, secrets: Secrets, threads: Threads
    ) -> None:
        self.settings = settings
        self.secrets = secrets
        self._threads = threads
        self.installation = _installation(settings.root)

    def environment(
        self, job: Job, chosen: Mapping[str, str]
    ) -> tuple[dict[str, str], list[str]]:
        """Return a program's variables, and the secrets that are among them.

        NotFoundError names a secret that there isn't.
        """
        secret = {
            name: self.secrets.resolve(value.removeprefix(SECRET_PREFIX))
            for name, value in chosen.items()
            if value.startswith(SECRET_PREFIX)
        }
        env = {
            "PATH": self.settings.path,
            "LANG": "C.UTF-8",
            **chosen,
            **secret,
            **{f"TRUSTFABRIC_{k.upper()}": str(v) for k, v in facts(job).items()},
            "TRUSTFABRIC_URL": self.settings.url(),
            "TRUSTFABRIC_TOKEN": job.token,
        }
        return env, [job.token, *secret.values()]

    def open(self, job: Job, needs: Sequence[Path] = ()) -> Place:
        """Make an attempt's private directory. OSError, UnsupportedError.

        `needs` is what its program has to read beside the system's own.
        """
        folder = self.settings.root / f"{job.run_id}-{job.lease_epoch}"
        account = account_for(self.settings.user)
        _make_private(folder, account)
        # Reached by name from the working directory where the way to it is barred.
        named = needs or is_reachable((folder,), account)
        place = Place(folder, str(folder) if named else ".", account, tuple(needs))
        place.make_folder("output")
        place.write("run.json", orjson.dumps(run_document(job)))
        return place

    def launch(
        self,
        job: Job,
        place: Place,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None = None,
    ) -> Launch:
        """Return how to start a program there, confined. UnsupportedError."""
        if cwd is not None and place.here == ".":
            raise UnsupportedError(
                f"{self.settings.user} can't reach {place.folder} from {cwd}: "
                "make the data directory's parents searchable (mode 0711)"
            )
        confined = confinement(
            self.settings.limits,
            place.folder,
            cwd,
            hidden=self.settings.hidden,
            account=place.account,
            unsandboxed=self.settings.unsandboxed,
            needs=place.needs,
        )
        return Launch(
            argv=[*confined.front, *argv],
            cwd=place.folder if cwd is None else Path(cwd),
            env={
                **env,
                "HOME": place.here,
                "TMPDIR": place.here,
                "TRUSTFABRIC_RUN_DIR": place.here,
                "TRUSTFABRIC_RUN_FILE": f"{place.here}/run.json",
                "TRUSTFABRIC_OUTPUT_DIR": f"{place.here}/output",
            },
            mark=f"{self.installation}-{job.run_id}-{job.lease_epoch}",
            account=confined.account,
        )

    async def leavings(self, place: Place, masker: Masker) -> Leavings:
        """Read what the program left; it has to be gone."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, collect, place.output, self.settings.leavings, masker
        )

    async def clear(self, folder: Path) -> None:
        """Remove an attempt's directory."""
        await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: shutil.rmtree(folder, ignore_errors=True)
        )

    async def reap(self, run_id: RunId) -> int:
        """Kill what is left of the run's attempts, and remove their directories."""
        killed = await asyncio.get_running_loop().run_in_executor(
            self._threads, kill_marked, f"{self.installation}-{run_id}"
        )
        for folder in self.settings.root.glob(f"{run_id}-*"):
            await self.clear(folder)
        return killed


def _installation(root: Path) -> str:
    """Return what the marks of this installation's programs begin with."""
    return hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]


def facts(job: Job) -> dict[str, Any]:
    """Return what a program is told of its run, as plain values."""
    return {
        "run_id": job.run_id,
        "instance_id": job.instance_id,
        "instance_name": job.instance_name,
        "server_id": job.server_id,
        "owner_id": job.owner_id,
        "playbook": job.playbook,
        "attempt": job.attempt,
        "lease_epoch": job.lease_epoch,
    }


def run_document(job: Job) -> dict[str, Any]:
    """Return all that a program is told of its run."""
    return {**facts(job), "payload": job.payload, "metadata": job.metadata}


def _make_private(folder: Path, account: Account | None) -> None:
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    if account is not None:
        os.chown(folder, account.uid, account.gid)
