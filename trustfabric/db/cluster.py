"""Making an embedded cluster: complete, or not there at all.

    <home>/pg             the cluster, 0700
    <home>/pg.password    of its one role that may log in, 0600
    <home>/run            the socket's folder, 0700

PostgreSQL refuses to run as root. As root its programs run as the account
`postgres` where that can reach both them and `home`, else in a user namespace in
which root has another number: nothing above `home` is ever opened up for it.
"""

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trustfabric.db.binaries import Binaries
from trustfabric.db.keeper import anyone_works_in
from trustfabric.errors import UnavailableError, UnsupportedError

ACCOUNT = "postgres"
ROLE = "trustfabric"

_NAMELESS = "nobody"
"""Root's name in the namespace, where there is no account of PostgreSQL's own: the
programs look their user up. Outside it they remain root, which alone can read."""

_SOCKET_PATH_MAX = 107 - len("/.s.PGSQL.5432.lock")

_INITDB_OPTIONS = (
    f"--username={ACCOUNT}",
    "--auth=reject",
    "--encoding=UTF8",
    "--locale=C",
    "--data-checksums",
    "--no-instructions",
)
_HBA = f"local all {ROLE} scram-sha-256\n"
"""No superuser can log in at all, and nobody over TCP."""

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """As whom the server runs; without a number as ourselves."""

    uid: int | None = None
    gid: int | None = None
    prefix: tuple[str, ...] = ()
    """What goes before a command line, to enter a namespace."""

    @property
    def groups(self) -> list[int] | None:
        return None if self.uid is None else []

    def give(self, path: Path) -> None:
        """Make `path` this account's own."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def choose_account(home: Path, binaries: Binaries) -> Account:
    """Return as whom to run a server in `home`; an existing cluster keeps its owner."""
    owner = _owner(home / "pg")
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise UnsupportedError(
                f"{home / 'pg'} belongs to user {owner}: run as that user, choose "
                "another data directory, or set DATABASE_URL"
            )
        return Account()
    for account in _for_root(owner):
        if _works(account, ["test", "-x", str(home)]) and _works(
            account, [binaries["postgres"], "--version"]
        ):
            return account
    raise UnsupportedError(
        "PostgreSQL does not run as root. There is no account that can reach "
        f"{home} and {binaries.folder}, and user namespaces are not allowed here: "
        "run as a normal user, choose another data directory, or set DATABASE_URL"
    )


def _for_root(owner: int | None) -> Iterator[Account]:
    number = pwd.getpwnam(_NAMELESS).pw_uid
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(ACCOUNT) if owner in (None, 0) else pwd.getpwuid(owner)
        number = entry.pw_uid
        if owner != 0:
            yield Account(uid=entry.pw_uid, gid=entry.pw_gid)
    if owner in (None, 0):
        numbers = (f"--map-user={number}", f"--map-group={number}")
        yield Account(prefix=("unshare", "--user", *numbers))


def _owner(cluster: Path) -> int | None:
    try:
        return cluster.stat().st_uid
    except FileNotFoundError:
        return None


async def make_cluster(home: Path, binaries: Binaries, account: Account) -> None:
    """Make `home`/pg; a killed attempt leaves only what `sweep` removes."""
    # A name of its own: the programs of a killed attempt may still be at work.
    unfinished = Path(tempfile.mkdtemp(prefix="pg.new-", dir=home))
    account.give(unfinished)
    password = secrets.token_urlsafe(32)
    await _run(
        account,
        [binaries["initdb"], "-D", str(unfinished), *_INITDB_OPTIONS],
    )
    told = await _run(
        account,
        [binaries["postgres"], "--single", "-D", str(unfinished), "postgres"],
        f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{password}'\n"
        f"CREATE DATABASE {ROLE} OWNER {ROLE}\n",
    )
    if "ERROR:" in told:  # which single-user mode does not exit with
        raise UnavailableError(f"making the database failed: {told.strip()}")
    (unfinished / "pg_hba.conf").write_text(_HBA)
    _sync(unfinished / "pg_hba.conf")
    _write_private(home / "pg.password", password)
    _finish(unfinished, home / "pg")


def _finish(unfinished: Path, cluster: Path) -> None:
    unfinished.rename(cluster)
    _sync(cluster.parent)


def sweep(home: Path) -> None:
    """Remove what killed attempts left behind, once their programs have ended."""
    for unfinished in home.glob("pg.new-*"):
        if not anyone_works_in(unfinished):
            shutil.rmtree(unfinished, ignore_errors=True)


def socket_folder(home: Path, account: Account) -> Path:
    """Return a folder that only `account` may enter, with a path short enough."""
    folder = home / "run"
    if len(str(folder)) <= _SOCKET_PATH_MAX:
        folder.mkdir(mode=0o700, exist_ok=True)
    else:
        # Fresh each time: a name that others could foresee, they could take first.
        folder = Path(tempfile.mkdtemp(prefix="trustfabric-", dir="/tmp"))
    account.give(folder)
    return folder


def server_command(
    home: Path, binaries: Binaries, account: Account, settings: dict[str, str]
) -> list[str]:
    """Return the command line that serves `home`; `settings` go before ours."""
    everything = {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "log_min_messages": "log",  # refused statements reach the caller anyhow
        "log_min_error_statement": "panic",  # statements hold people's data
        "log_checkpoints": "off",
        **settings,
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(socket_folder(home, account)),
        "unix_socket_permissions": "0700",
    }
    options = [f"--{name}={value}" for name, value in everything.items()]
    return [*account.prefix, binaries["postgres"], "-D", str(home / "pg"), *options]


def _works(account: Account, command: list[str]) -> bool:
    try:
        subprocess.run(
            [*account.prefix, *command],
            user=account.uid,
            group=account.gid,
            extra_groups=account.groups,
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


async def _run(account: Account, command: list[str], text: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        *account.prefix,
        *command,
        user=account.uid,
        group=account.gid,
        extra_groups=account.groups,
        cwd="/",
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        told, _ = await process.communicate(text.encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise UnavailableError(
            f"{Path(command[0]).name} failed: {told.decode(errors='replace').strip()}"
        )
    return told.decode(errors="replace")


def _write_private(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
