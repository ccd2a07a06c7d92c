"""A private PostgreSQL in the data directory: found or made, started or adopted.

Any number of processes may use one; it runs from the first to the last of them
(keeper.py). Three locks in `home` order everything, and die with who holds them:

    start.lock    one process at a time makes, starts or adopts
    users.lock    shared by all users; the keeper waits to have it for itself
    here.lock     shared by all users; tells whoever leaves whether it is the last
"""

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

from trustfabric.db import keeper
from trustfabric.db.binaries import Binaries, find_binaries
from trustfabric.db.cluster import (
    ENVIRONMENT,
    ROLE,
    choose_account,
    make_cluster,
    server_command,
    sweep,
)
from trustfabric.errors import UnavailableError

START_S = 300.0
"""How long to wait for a server that starts: recovery after a crash takes its time."""

POLL_S = 0.02
LOG_BYTES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedServer:
    """One process's use of the server."""

    url: str
    """Holds the password."""
    version: str
    home: Path
    _users: int
    _here: int

    async def stop(self) -> None:
        """Leave; return when the server has stopped, if nobody else uses it."""
        last = _try_lock(self._here, fcntl.LOCK_EX)
        os.close(self._here)
        os.close(self._users)
        while last and _is_locked(self.home / "keeper.lock"):
            await asyncio.sleep(POLL_S)
            last = not _is_locked(self.home / "here.lock", fcntl.LOCK_EX)


async def start_embedded(
    home: Path,
    *,
    binaries: Path | None = None,
    settings: Mapping[str, str] | None = None,
    within_s: float = START_S,
) -> EmbeddedServer:
    """Return when the server in `home` takes connections; make it where there is none.

    `binaries` is a folder to look for PostgreSQL's programs in first; `settings` are
    server settings for a server that is not running yet. Raise UnsupportedError where
    no PostgreSQL can be run here, saying what to do.
    """
    home = _made(home)
    async with asyncio.timeout(within_s):
        with ExitStack() as starting, ExitStack() as using:
            await _lock(home / "start.lock", fcntl.LOCK_EX, starting)
            users = await _lock(home / "users.lock", fcntl.LOCK_SH, using)
            here = await _lock(home / "here.lock", fcntl.LOCK_SH, using)
            programs = await asyncio.to_thread(find_binaries, home / "pg", binaries)
            if not _is_locked(home / "keeper.lock"):
                await _start(home, programs, dict(settings or {}))
            url = await _until_ready(home)
            using.pop_all()
    return EmbeddedServer(
        url=url, version=programs.version, home=home, _users=users, _here=here
    )


def _made(home: Path) -> Path:
    # Passable as root, so that another account can serve what it owns in there.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    home.mkdir(mode=mode, parents=True, exist_ok=True)
    return home.absolute()


async def _start(home: Path, binaries: Binaries, settings: dict[str, str]) -> None:
    account = await asyncio.to_thread(choose_account, home, binaries)
    await asyncio.to_thread(sweep, home)
    if not (home / "pg").exists():
        await make_cluster(home, binaries, account)
    order = {
        "home": str(home),
        "uid": account.uid,
        "gid": account.gid,
        "groups": account.groups,
        "environment": ENVIRONMENT,
        "command": server_command(home, binaries, account, settings),
    }
    with _log(home) as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", keeper.__file__, json.dumps(order)),
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        await process.wait()


async def _until_ready(home: Path) -> str:
    password = (home / "pg.password").read_text()
    while True:
        with suppress(FileNotFoundError, IndexError):
            url = _url(home, password)
            try:
                async with await psycopg.AsyncConnection.connect(url):
                    return url
            except psycopg.OperationalError as error:
                if error.sqlstate == "28P01":
                    raise UnavailableError(f"{home / 'pg'}: {error}") from error
        if not _is_locked(home / "keeper.lock"):
            raise UnavailableError(
                f"PostgreSQL did not start in {home / 'pg'}:\n{_last_words(home)}"
            )
        await asyncio.sleep(POLL_S)


def _url(home: Path, password: str) -> str:
    record = (home / "pg" / "postmaster.pid").read_text().split("\n")
    return f"postgresql://{ROLE}:{password}@/{ROLE}?host={quote(record[4], safe='')}"


@contextmanager
def _log(home: Path) -> Iterator[int]:
    path = home / "pg.log"
    with suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES:
            path.unlink()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _last_words(home: Path) -> str:
    with (home / "pg.log").open(errors="replace") as log:
        return "".join(log.readlines()[-5:]).strip()


async def _lock(path: Path, kind: int, until: ExitStack) -> int:
    descriptor = _open(path)
    until.callback(os.close, descriptor)
    while not _try_lock(descriptor, kind):  # noqa: ASYNC110  files have no events
        await asyncio.sleep(POLL_S)
    return descriptor


def _is_locked(path: Path, kind: int = fcntl.LOCK_SH) -> bool:
    """Whether somebody holds a lock that would keep us from one of this `kind`."""
    descriptor = _open(path)
    try:
        return not _try_lock(descriptor, kind)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
