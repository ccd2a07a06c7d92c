"""A real runtime, as `mcpctl serve` in a process of its own, on the tests' cluster.

One serves a whole session, because a start costs seconds: what tests make in it is
kept apart by owners, of which `Served.newcomer` never gives one twice.
"""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jwt
import psycopg
import pytest

from tests.fix_db import TEMPLATE, _with_database

SECRET = "the tests' own signing secret, of more than 32 bytes"
START_S = 60.0
STOP_S = 20.0

QUICK: Mapping[str, str] = {
    "JWT_SECRET": SECRET,
    "CHAOS_ENABLED": "true",
    "VM_ATTESTATION_POLICY": "demo-software-tpm",
    "REMEDIATION_TICK_SECONDS": "0.2",
    "REMEDIATION_BREAKER_MINIMUM": "100000",
    "SSE_HEARTBEAT_SECONDS": "0.5",
    "SSE_BUFFER_EVENTS": "50",
    "LOG_FORMAT": "json",
    "LOG_LEVEL": "debug",
}


class Served:
    """The runtime's process; it comes back on the same port and data directory."""

    def __init__(self, data_dir: Path, database_url: str, **settings: str) -> None:
        self.data_dir = data_dir
        self.database_url = database_url
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = data_dir.parent / f"{data_dir.name}.log"
        self._settings = {
            **QUICK,
            "DATABASE_URL": database_url,
            "TRUSTFABRIC_DATA_DIR": str(data_dir),
            "BIND_PORT": str(self.port),
            "EXECUTOR_ALLOWED_HOSTS": f"127.0.0.1:{self.port}",
            "EXECUTOR_SECRET_DEMO": "the-demo-secret",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._owners = itertools.count(1000)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_up(self) -> bool:
        """Whether its process has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Return when it listens."""
        with self.log_path.open("ab") as log:
            self._process = mcpctl(self._settings, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while not self._listens():
            assert self._process.poll() is None, self.log()[-4000:]
            assert time.monotonic() < until, self.log()[-4000:]
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(how)
        try:
            return process.wait(STOP_S)
        finally:
            process.kill()
            process.wait()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def newcomer(self) -> int:
        """Return a user whom nobody has seen."""
        return next(self._owners)

    def token(self, sub: object, role: str = "operator", **claims: object) -> str:
        """Sign what an identity provider would; a claim of None is left out."""
        return sign({"sub": str(sub), "role": role, **claims})

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the database behind the runtime's back."""
        with psycopg.connect(self.database_url, autocommit=True) as conn:
            cursor = conn.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def _listens(self) -> bool:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
            probe.settimeout(5.0)
            probe.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            try:
                return b" 200 " in probe.recv(100)
            except OSError:
                return False


def mcpctl(
    settings: Mapping[str, str], *arguments: str, **options: Any
) -> subprocess.Popen[bytes]:
    """Start `mcpctl serve`, or another command of it."""
    foreign = ("MCP_", "LIBVIRT_", "DATABASE_", "JWT_", "TRUSTFABRIC_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return subprocess.Popen(
        [sys.executable, "-m", "trustfabric.main", *(arguments or ("serve",))],
        env={**kept, **settings},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )


def sign(claims: Mapping[str, object], secret: str = SECRET) -> str:
    """Sign claims; they expire in ten minutes unless they say otherwise."""
    expiring = {"exp": int(time.time()) + 600, **claims}
    known = {name: value for name, value in expiring.items() if value is not None}
    return jwt.encode(known, secret, algorithm="HS256")


def free_port() -> int:
    """Return one that nobody has, nor is given before a runtime listens there.

    Those below 32768 are not among what the kernel gives to others meanwhile.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


@contextmanager
def serving(data_dir: Path, database_url: str, **settings: str) -> Iterator[Served]:
    """Run a runtime while the block does."""
    runtime = Served(data_dir, database_url, **settings)
    try:
        runtime.start()
        yield runtime
    finally:
        runtime.stop()


@pytest.fixture(scope="session")
def runtime(
    _cluster_url: str, _template_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One runtime for all tests that leave it as it was."""
    for url in _with_database(_cluster_url, TEMPLATE):
        with serving(tmp_path_factory.mktemp("runtime") / "data", url) as served:
            yield served


@pytest.fixture
def own_runtime(database_url: str, tmp_path: Path) -> Iterator[Served]:
    """One for a test that restarts or kills it."""
    with serving(tmp_path / "data", database_url) as served:
        yield served
