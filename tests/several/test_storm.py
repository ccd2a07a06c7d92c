"""A bad image in two runtimes: one incident names it, and a person lets work go on."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.fix_runtime import Served, serving
from tests.http.client import Caller, Json
from tests.http.conftest import Still, still_instance

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ALICE, BOSS = 7, 1
FLEET, BAD, RECOVERED = 50, 30, 5
MINIMUM = 5
INCIDENTS = "/api/trust/incidents"
RUNS = "/api/trust/remediation/runs"


@dataclass
class Storm:
    """Alice's fleet on two runtimes, of which every other call goes to each."""

    runtimes: list[Served]
    http: aiohttp.ClientSession
    fleet: list[Still]

    def alice(self, at: int = 0) -> Caller:
        runtime = self.runtimes[at % len(self.runtimes)]
        return Caller(runtime, self.http, ALICE, runtime.token(ALICE))

    def boss(self) -> Caller:
        runtime = self.runtimes[1]
        return Caller(runtime, self.http, BOSS, runtime.token(BOSS, "admin"))

    @property
    def bad(self) -> list[Still]:
        return self.fleet[:BAD]

    async def falls(self) -> None:
        """Quarantine what has the bad image, at once and through both runtimes."""
        await asyncio.gather(
            *(self._quarantine(at, vm) for at, vm in enumerate(self.bad))
        )

    async def _quarantine(self, at: int, vm: Still) -> None:
        await self.alice(at).made(
            f"{vm.path}/transition",
            {
                "lifecycle_state": "quarantined",
                "attestation_status": "untrusted",
                "expected_version": 1,
                "transition_reason": "measurement refused",
            },
        )

    async def posture(self, vm: Still) -> Json:
        row: Json = (await self.alice().get(vm.path)).json()
        return row

    async def held(self) -> list[Still]:
        postures = [await self.posture(vm) for vm in self.bad]
        return [
            vm
            for vm, row in zip(self.bad, postures, strict=True)
            if row["remediation_state"] == "remediation:held"
        ]

    async def runs(self) -> list[Json]:
        found: list[Json] = (await self.alice().get(RUNS, limit=200)).json()
        return found


@pytest_asyncio.fixture
async def storm(database_url: str, tmp_path: Path) -> AsyncIterator[Storm]:
    with ExitStack() as stack:
        runtimes = [
            stack.enter_context(
                serving(
                    tmp_path / name,
                    database_url,
                    REMEDIATION_BREAKER_MINIMUM=str(MINIMUM),
                )
            )
            for name in ("one", "two")
        ]
        fleet = [still_instance(runtimes[0], ALICE) for _ in range(FLEET)]
        runtimes[0].rows(
            "UPDATE runtime_vm_instances"
            "   SET image = CASE WHEN id = ANY(%s) THEN 'bad' ELSE 'good' END",
            [vm.id for vm in fleet[:BAD]],
        )
        async with aiohttp.ClientSession() as http:
            found = Storm(runtimes, http, fleet)
            await found.boss().made(
                "/api/trust/remediation/playbooks",
                {
                    "playbook_key": "default-vm-remediation",
                    "display_name": "Repair",
                    "executor_type": "shell",
                    "shared": True,
                    "metadata": {"script": "echo repaired", "timeout_seconds": 30},
                },
            )
            yield found


async def until(look: Callable[[], Awaitable[object]]) -> None:
    """Wait until it finds something."""
    ends = time.monotonic() + 30
    while not await look():
        assert time.monotonic() < ends, "waited in vain"
        await asyncio.sleep(0.05)


async def test_one_incident_names_the_image_and_what_is_due_starts_after_its_release(
    storm: Storm,
) -> None:
    async with storm.alice(1).stream("/api/trust/holds/stream") as stream:
        await storm.falls()
        opened = (await stream.event()).data
    assert opened["event"] == "breaker-opened"

    async def all_decided() -> bool:
        rows = [await storm.posture(vm) for vm in storm.bad]
        return all(row["remediation_state"] != "remediation:none" for row in rows)

    async def all_counted() -> bool:
        (one,) = (await storm.boss().get(INCIDENTS)).json()
        return bool(one["quarantined"] == BAD)

    await until(all_decided)
    await until(all_counted)

    (incident,) = (await storm.boss().get(INCIDENTS)).json()
    first = incident["common"][0]
    assert (incident["scope"], incident["owner_id"]) == ("owner", ALICE)
    assert (first["trait"], first["value"]) == ("image", "bad")
    assert (first["affected"], first["rest"]) == (BAD, 0)
    assert "image bad" in incident["summary"]

    before = await storm.runs()
    assert len(before) < MINIMUM, "only what fell before it was a storm"
    staged = {run["runtime_vm_instance_id"] for run in before}
    held = [vm for vm in await storm.held() if vm.id not in staged]
    assert len(held) == BAD - len(staged)
    told = (await storm.alice().get(f"{held[0].path}/why")).json()
    assert "breaker-open" in [one["code"] for one in told["reasons"]]

    for vm in held[:RECOVERED]:
        row = await storm.posture(vm)
        body = {"reason": "reinstalled", "expected_version": row["version"]}
        await storm.alice().made(f"{vm.path}/release", body)
    left = await storm.boss().made(
        "/api/trust/remediation/breaker/release", {"reason": "image withdrawn"}
    )
    assert ([one["id"] for one in left["released"]], left["open"]) == (
        [incident["id"]],
        False,
    )

    async def all_staged() -> bool:
        return len(await storm.runs()) >= BAD - RECOVERED

    await until(all_staged)
    await until(lambda: _over(storm))
    repaired = {run["runtime_vm_instance_id"] for run in await storm.runs()}
    assert repaired == {vm.id for vm in storm.bad} - {vm.id for vm in held[:RECOVERED]}
    assert len((await storm.boss().get(INCIDENTS)).json()) == 1, "no second storm"
    known = {run["id"] for run in before}
    starts = [run["started_at"] for run in await storm.runs() if run["id"] not in known]
    assert min(starts) > left["released"][0]["released_at"], "nothing started before"


async def _over(storm: Storm) -> bool:
    found = await storm.runs()
    return all(run["status"] not in ("pending", "running") for run in found)
