"""People with tokens, and rows that nothing in the runtime moves by itself."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.fix_runtime import Served
from tests.http.client import Caller, Json
from tests.http.guests import Guest, a_guest

Meet = Callable[..., Caller]


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=20),
    ) as session:
        yield session


@pytest.fixture
def meet(runtime: Served, http: aiohttp.ClientSession) -> Meet:
    """Make a caller with a role; a new user unless one is given."""

    def make(role: str = "operator", user: int | None = None, **claims: Any) -> Caller:
        whose = runtime.newcomer() if user is None else user
        return Caller(runtime, http, whose, runtime.token(whose, role, **claims))

    return make


@pytest.fixture
def alice(meet: Meet) -> Caller:
    return meet()


@pytest.fixture
def bravo(meet: Meet) -> Caller:
    """Another tenant."""
    return meet()


@pytest.fixture
def boss(meet: Meet) -> Caller:
    return meet("admin")


@pytest.fixture
def nobody(runtime: Served, http: aiohttp.ClientSession) -> Caller:
    return Caller(runtime, http)


@dataclass
class Still:
    """An instance of which only the database knows: it stands still for a test."""

    runtime: Served
    server_id: int
    id: int
    name: str

    @property
    def path(self) -> str:
        return f"/api/trust/registry/{self.id}"

    def move(self, lifecycle: str, status: str, **columns: Any) -> None:
        """Change its trust as the one writer does: a version and a history row."""
        row = {
            "freshness_deadline": None,
            "remediation_state": "remediation:none",
            "triggered_at": None,
            **columns,
        }
        self.runtime.rows(
            """
            WITH before AS (
                SELECT * FROM runtime_vm_trust_registry
                 WHERE runtime_vm_instance_id = %s
            ), saved AS (
                UPDATE runtime_vm_trust_registry r
                   SET lifecycle_state = %s, attestation_status = %s,
                       freshness_deadline = %s, remediation_state = %s,
                       version = r.version + 1, updated_at = clock_timestamp()
                  FROM before b
                 WHERE r.runtime_vm_instance_id = b.runtime_vm_instance_id
             RETURNING r.*
            )
            INSERT INTO runtime_vm_trust_history (
                   runtime_vm_instance_id, previous_status, current_status,
                   previous_lifecycle_state, current_lifecycle_state,
                   transition_reason, remediation_state, remediation_attempts,
                   freshness_deadline, registry_version, actor, triggered_at)
            SELECT s.runtime_vm_instance_id, b.attestation_status,
                   s.attestation_status, b.lifecycle_state, s.lifecycle_state,
                   'moved', s.remediation_state, s.remediation_attempts,
                   s.freshness_deadline, s.version, 'test', coalesce(%s, now())
              FROM saved s, before b
            """,
            self.id,
            lifecycle,
            status,
            row["freshness_deadline"],
            row["remediation_state"],
            row["triggered_at"],
        )

    def quarantine(self) -> None:
        """Quarantine it as if the dispatcher had seen it: version 2."""
        tag = "remediation:no-playbook"
        self.move("quarantined", "untrusted", remediation_state=tag)


def still_instance(runtime: Served, owner: int) -> Still:
    """Make a server with an instance that is suspect and pending."""
    runtime.rows("INSERT INTO users (id) VALUES (%s) ON CONFLICT DO NOTHING", owner)
    ((server, instance, name),) = runtime.rows(
        """
        WITH server AS (
            INSERT INTO servers (owner_id, name) VALUES (%s, 'web') RETURNING id
        )
        INSERT INTO runtime_vm_instances
               (server_id, instance_id, driver, desired_state, power_state)
        SELECT id, 'vm-' || id, 'libvirt', 'running', 'running' FROM server
        RETURNING server_id, id, instance_id
        """,
        owner,
    )
    runtime.rows(
        """
        WITH registered AS (
            INSERT INTO runtime_vm_trust_registry (runtime_vm_instance_id) VALUES (%s)
        )
        INSERT INTO runtime_vm_trust_history (
               runtime_vm_instance_id, current_status, current_lifecycle_state,
               transition_reason, remediation_state, remediation_attempts,
               registry_version, actor)
        VALUES (%s, 'pending', 'suspect', 'provisioned', 'remediation:none', 0, 1,
                'test')
        """,
        instance,
        instance,
    )
    _wait_until_heard(runtime, instance)
    return Still(runtime, server, instance, name)


def _wait_until_heard(runtime: Served, instance: int) -> None:
    """Wait until streams that open from now on don't tell of its making."""
    heard = """
        SELECT 1 FROM listener_positions p, runtime_vm_trust_history h
         WHERE p.name LIKE '%%/trust' AND h.runtime_vm_instance_id = %s
           AND (p.xid, p.id) >= (h.xid, h.id)
    """
    until = time.monotonic() + 10
    while not runtime.rows(heard, instance):
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def vm(runtime: Served, alice: Caller) -> Still:
    """One of Alice's."""
    return still_instance(runtime, alice.user)


SHELL = {"command": "true", "timeout_seconds": 30}
CLOUD = {"method": "POST", "url": "https://cloud.example/repair"}


async def a_playbook(author: Caller, key: str, **fields: Any) -> Json:
    """Add a playbook; without anything said it waits for an approval."""
    return await author.made(
        "/api/trust/remediation/playbooks",
        {
            "playbook_key": key,
            "display_name": "Repair",
            "executor_type": "cloud_api",
            "approval_required": True,
            "metadata": CLOUD,
            **fields,
        },
    )


async def a_run(by: Caller, instance: Still, playbook: str, **fields: Any) -> Json:
    answer = await by.made(
        "/api/trust/remediation/runs",
        {"runtime_vm_instance_id": instance.id, "playbook": playbook, **fields},
    )
    run: Json = answer["run"]
    return run


async def run_becomes(by: Caller, run_id: int, *statuses: str) -> Json:
    """Return the run once its stream has told that it is one of these."""
    path = f"/api/trust/remediation/runs/{run_id}"
    async with by.stream(
        "/api/trust/remediation/stream", last_event_id="0-0", run_id=run_id
    ) as stream:
        while True:
            told = (await stream.event(30)).data["event"]
            if told.get("status") in statuses:
                run: Json = (await by.get(path)).json()
                return run


@pytest_asyncio.fixture
async def guest(alice: Caller) -> AsyncIterator[Guest]:
    found = await a_guest(alice)
    yield found
    await alice.call("DELETE", f"/api/servers/{found.server}")
