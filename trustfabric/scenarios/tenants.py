"""The tenants under test: their persons, what they own, and all that they see."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trustfabric.scenarios.client import Person, RefusedError
from trustfabric.scenarios.runtime import Runtime
from trustfabric.scenarios.stream import Recorder

FIRST_SUB = 101
APPROVER_SUB = 900
PATIENCE_S = 60.0

DEFAULT_PLAYBOOK = "default-vm-remediation"
ORDERED_PLAYBOOK = "restart-vm"
"""What a person enqueues by hand; somebody else has to agree."""
IMPATIENT_PLAYBOOK = "restart-vm-tried-twice"
"""The same, given up after one retry."""
PLAYBOOKS = "/api/trust/remediation/playbooks"
SCRIPT = Path(__file__).with_name("playbooks") / "restart-vm.sh"


@dataclass(frozen=True, slots=True)
class Tenant:
    """One owner: an operator, what it made, and its two streams."""

    name: str
    sub: int
    operator: Person
    trust: Recorder
    runs: Recorder
    servers: set[int] = field(default_factory=set)
    instances: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class World:
    """Everybody that a scenario may need."""

    runtime: Runtime
    admin: Person
    """Approves what others ordered, and kills actors."""
    tenants: dict[str, Tenant]

    def others(self, tenant: Tenant) -> list[Tenant]:
        return [one for one in self.tenants.values() if one is not tenant]


@asynccontextmanager
async def peopled(runtime: Runtime, owners: Mapping[str, int]) -> AsyncIterator[World]:
    """Give every owner, by name and user id, its operator, playbook and streams."""
    async with AsyncExitStack() as stack:
        admin, *operators = await asyncio.gather(
            _person(runtime, APPROVER_SUB, "admin"),
            *(_person(runtime, sub, "operator") for sub in owners.values()),
        )
        for one in (admin, *operators):
            await stack.enter_async_context(one)
        world = World(runtime, admin, {})
        for (name, sub), operator in zip(owners.items(), operators, strict=True):
            tenant = _tenant(name, sub, operator)
            for recorder in (tenant.trust, tenant.runs):
                await stack.enter_async_context(recorder.running())
            await add_playbook(admin, DEFAULT_PLAYBOOK, sub)
            world.tenants[name] = tenant
        yield world


async def _person(runtime: Runtime, sub: int, role: str) -> Person:
    token = await runtime.token(sub, role)
    return Person(runtime.url, token, patience_s=PATIENCE_S)


def _tenant(name: str, sub: int, operator: Person) -> Tenant:
    trust = Recorder(operator, "/api/trust/registry/stream", snapshot="true")
    runs = Recorder(operator, "/api/trust/remediation/stream")
    return Tenant(name, sub, operator, trust, runs)


async def add_playbook(
    admin: Person, key: str, owner: int, *, retry_limit: int = 20
) -> Any:
    """Give an owner the playbook that restarts a VM; fine where it has it."""
    body = {
        "playbook_key": key,
        "display_name": "Restart the VM",
        "description": "Stops the VM and starts it again: a new boot.",
        "executor_type": "shell",
        "owner_id": owner,
        "approval_required": True,
        "sla_duration_seconds": 900,
        "metadata": {
            "script": SCRIPT.read_text(),
            "timeout_seconds": 120,
            "on_lost": "retry",
            "retry_limit": retry_limit,
        },
    }
    try:
        return await admin.post(PLAYBOOKS, body)
    except RefusedError as error:
        if error.slug != "duplicate-key":
            raise
        return None
