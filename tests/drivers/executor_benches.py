"""One bench an executor: playbooks that do what the contract's tests ask for.

Each speaks its executor's own language; what they have to show is the same.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.drivers.test_shell import Log, a_job
from trustfabric.domain.allow_list import AllowList
from trustfabric.domain.executors import Executor, ExitStatus
from trustfabric.drivers.ansible import AnsibleExecutor
from trustfabric.drivers.cloud_api import CloudExecutor
from trustfabric.drivers.cloud_calls import CloudSettings
from trustfabric.drivers.output import OutputLimits
from trustfabric.drivers.pinned import PinnedClient
from trustfabric.drivers.secrets import Secrets
from trustfabric.drivers.shell import ShellExecutor
from trustfabric.drivers.subprocesses import marked
from trustfabric.drivers.workplace import ProgramSettings, Workplace

SECRET = 'hunter2-"hunter2"/+x'
SECRETS = Secrets({"db": SECRET})
SMALL = OutputLimits(line_chars=400, lines=40, chars=20_000)
Spec = dict[str, Any]


class Bench(Protocol):
    """What the contract's tests need of an executor."""

    executor: Executor

    def gated(self) -> Spec: ...

    def open_gate(self) -> None: ...

    def endless(self) -> Spec: ...

    def is_endless(self) -> bool: ...

    def odd_bytes(self) -> Spec: ...

    def flood(self) -> Spec: ...

    def leak(self) -> Spec: ...

    def tell_run(self) -> Spec: ...

    def failing(self) -> dict[str, Spec]: ...

    def successor(self) -> Executor: ...

    def left(self) -> list[int]: ...


async def run(
    bench: Bench, spec: Spec, cancelled: asyncio.Event | None = None
) -> tuple[ExitStatus, Log]:
    """Execute a playbook to its end."""
    log = Log()
    job = a_job(**spec)
    status = await bench.executor.execute(job, log.emit, cancelled or asyncio.Event())
    return status, log


@contextmanager
def a_workplace(**changes: Any) -> Iterator[Workplace]:
    root = Path(tempfile.mkdtemp(prefix="tf-bench-"))
    root.chmod(0o711)
    settings: dict[str, Any] = {
        "root": root / "runs",
        "hidden": root,
        "url": lambda: "http://127.0.0.1:3000",
        "unsandboxed": True,
        "output": SMALL,
        **changes,
    }
    with ThreadPoolExecutor(1) as threads:
        yield Workplace(ProgramSettings(**settings), SECRETS, threads)
    shutil.rmtree(root, ignore_errors=True)


@dataclass
class Programs:
    """What shell and ansible have in common."""

    workplace: Workplace

    def open_gate(self) -> None:
        for folder in self.workplace.settings.root.iterdir():
            (folder / "gate").touch()

    def is_endless(self) -> bool:
        """Tell whether the endless one has come so far that none of it ends itself."""
        root = self.workplace.settings.root
        return any((folder / "endless").exists() for folder in root.iterdir())

    def left(self) -> list[int]:
        return marked(f"{self.workplace.installation}-1")


WAIT = 'while ! test -e "$TRUSTFABRIC_RUN_DIR/gate"; do sleep 0.05; done'
ENDLESS = """
trap '' TERM
cd "$TRUSTFABRIC_RUN_DIR"
(setsid sh -c ': >left; kill -STOP $$' &)
while ! test -e left; do sleep 0.05; done
: >endless
kill -STOP $$
"""
"""Its two stop rather than sleep: what becomes `sleep` has no mark for an instant."""
LEAK = (
    'printf "%s\\n" "$PASSWORD"; printf %s "$PASSWORD" | head -c 8; sleep 0.1; '
    'printf "%s\\n" "$PASSWORD" | tail -c +9; printf %s "user:$PASSWORD" | base64; '
    'printf "%s\\n" "$PASSWORD" >&2; printf "%s" "$PASSWORD" '
    '>"$TRUSTFABRIC_OUTPUT_DIR/leak.txt"'
)


@dataclass
class ShellBench(Programs):
    executor: Executor = field(init=False)

    def __post_init__(self) -> None:
        self.executor = self.successor()

    def successor(self) -> Executor:
        return ShellExecutor(self.workplace)

    def gated(self) -> Spec:
        return {"script": f"echo first; {WAIT}; echo second"}

    def endless(self) -> Spec:
        return {
            "script": f"echo on; {ENDLESS}",
            "kill_grace_seconds": 0.2,
        }

    def odd_bytes(self) -> Spec:
        return {"script": "printf 'a\\377\\0b\\n'"}

    def flood(self) -> Spec:
        return {
            "script": "printf '%09999d\\n' 0; seq 1 100000; head -c 9999999 /dev/zero"
        }

    def leak(self) -> Spec:
        return {"script": f"{LEAK}; exit 1", "env": {"PASSWORD": "secret:db"}}

    def tell_run(self) -> Spec:
        return {"script": 'cat "$TRUSTFABRIC_RUN_FILE"; echo; env'}

    def failing(self) -> dict[str, Spec]:
        return {
            "execution-failure": {"script": "exit 3"},
            "policy-denied": {"script": "exit 77"},
            "playbook-bug": {"command": "no-such-program-at-all"},
            "dependency-unavailable": {"script": "exit 75"},
            "timeout": {"script": "sleep 60", "timeout_seconds": 0.2},
        }


def _play(*tasks: Spec, **more: Any) -> Spec:
    play = {"hosts": "all", "gather_facts": False, "tasks": list(tasks)}
    return {"playbook": [play], **more}


def _shell(script: str) -> Spec:
    return {"name": "say", "ansible.builtin.shell": script, "register": "said"}


@dataclass
class AnsibleBench(Programs):
    executor: Executor = field(init=False)

    def __post_init__(self) -> None:
        self.executor = self.successor()

    def successor(self) -> Executor:
        return AnsibleExecutor(self.workplace)

    def gated(self) -> Spec:
        return _play(
            {"name": "first", "ansible.builtin.debug": {"msg": "first"}},
            _shell(WAIT),
            {"name": "last", "ansible.builtin.debug": {"msg": "second"}},
        )

    def endless(self) -> Spec:
        return _play(
            {"name": "on", "ansible.builtin.debug": {"msg": "on"}},
            _shell(ENDLESS),
            kill_grace_seconds=0.5,
        )

    def odd_bytes(self) -> Spec:
        return _play(
            _shell("printf 'a\\377b\\n'"),
            {"ansible.builtin.debug": {"var": "said.stdout"}},
        )

    def flood(self) -> Spec:
        return _play(
            {
                "ansible.builtin.debug": {"msg": "{{ 'x' * 9999 }}{{ item }}"},
                "loop": "{{ range(60) | list }}",
            }
        )

    def leak(self) -> Spec:
        return _play(
            {
                **_shell(f"{LEAK}; exit 1"),
                "environment": {"PASSWORD": "{{ password }}"},
            },
            extra_vars={"password": "secret:db"},
        )

    def tell_run(self) -> Spec:
        return _play(
            {"ansible.builtin.debug": {"msg": "{{ trustfabric | to_json }}"}},
            _shell("env"),
            {"ansible.builtin.debug": {"var": "said.stdout_lines"}},
        )

    def failing(self) -> dict[str, Spec]:
        return {
            "execution-failure": _play(_shell("exit 3")),
            "playbook-bug": {"playbook": [{"hosts": "all", "roles": ["absent"]}]},
            "transient-infrastructure": _play(
                _shell("true"),
                inventory="away ansible_host=127.0.0.1 ansible_port=1",
            ),
            "timeout": _play(_shell("sleep 60"), timeout_seconds=1.5),
        }


@dataclass
class CloudBench:
    """An API of our own, on a real socket."""

    server: TestServer
    gate: asyncio.Event
    seen: list[web.Request] = field(default_factory=list)
    executor: Executor = field(init=False)

    def __post_init__(self) -> None:
        port = self.server.port
        client = PinnedClient(AllowList.of([f"127.0.0.1:{port}", "127.0.0.1:1"]))
        self.executor = CloudExecutor(
            client, SECRETS, CloudSettings(body_bytes=100_000, retry_base_s=0.01)
        )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.port}{path}"

    def get(self, path: str, **more: Any) -> Spec:
        return {"method": "GET", "url": self.url(path), **more}

    def gated(self) -> Spec:
        return {
            "steps": [self.get("/ok", name="first"), self.get("/gate", name="second")]
        }

    def open_gate(self) -> None:
        self.gate.set()

    def endless(self) -> Spec:
        return {"steps": [self.get("/ok", name="on"), self.get("/gate")]}

    def is_endless(self) -> bool:
        return True

    def odd_bytes(self) -> Spec:
        return self.get("/odd", expect={"json": {"/a": {"exists": True}}})

    def flood(self) -> Spec:
        return self.get("/huge")

    def leak(self) -> Spec:
        return self.get(
            "/echo",
            headers={"X-Key": "secret:db", "Authorization": "Bearer secret:db"},
            expect={"status": 404},
        )

    def tell_run(self) -> Spec:
        return {
            "method": "POST",
            "url": self.url("/echo?vm=${instance_id}"),
            "body": {"id": "${instance_id}", "text": "${payload/text}"},
        }

    def failing(self) -> dict[str, Spec]:
        return {
            "execution-failure": self.get("/status/404"),
            "policy-denied": self.get("/status/403"),
            "playbook-bug": self.get("/ok", headers={"X": "${payload/absent}"}),
            "dependency-unavailable": {"method": "GET", "url": "http://127.0.0.1:1/"},
            "timeout": self.get("/gate", timeout_seconds=0.2),
        }

    def successor(self) -> Executor:
        return self.executor

    def left(self) -> list[int]:
        return []


@asynccontextmanager
async def a_cloud() -> AsyncIterator[CloudBench]:
    gate = asyncio.Event()
    seen: list[web.Request] = []

    async def ok(_: web.Request) -> web.Response:
        return web.json_response({"state": "done", "count": len(seen)})

    async def wait(_: web.Request) -> web.Response:
        await gate.wait()
        return web.json_response({})

    async def odd(_: web.Request) -> web.Response:
        return web.Response(body=b'{"a\xff\0b": 1', content_type="application/json")

    async def huge(_: web.Request) -> web.Response:
        return web.Response(body=b"[" + b"1," * 1_000_000 + b"1]")

    async def echo(request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        return web.json_response(
            {
                "headers": dict(request.headers),
                "body": body,
                "url": str(request.rel_url),
            }
        )

    async def status(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(status=int(request.match_info["status"]))

    app = web.Application()
    app.router.add_get("/ok", ok)
    app.router.add_get("/gate", wait)
    app.router.add_get("/odd", odd)
    app.router.add_get("/huge", huge)
    app.router.add_route("*", "/echo", echo)
    app.router.add_route("*", "/status/{status}", status)
    async with TestServer(app, host="127.0.0.1") as server:
        assert isinstance(server, TestServer)
        yield CloudBench(server, gate, seen)
        gate.set()
