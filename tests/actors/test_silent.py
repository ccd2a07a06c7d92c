"""Agents that do not answer, and those that do: who waits for whom."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests import fix_machines
from tests.fix_fabric import ASK_S, until
from tests.fix_machines import Machines, some_machines
from trustfabric.actors import attestation
from trustfabric.actors.attestation import Attest, InFlight
from trustfabric.actors.inquiries import EvidenceSource
from trustfabric.db.session import Database

pytestmark = [pytest.mark.db, pytest.mark.libvirt]


class SomeSilent:
    """A source that never answers for some."""

    def __init__(self, source: EvidenceSource) -> None:
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self.most = 0
        self._source = source
        self._now = 0

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        self.asked.append(name)
        if name not in self.silent:
            return await self._source.collect(name, extra_data)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await asyncio.Event().wait()
        finally:
            self._now -= 1
        raise AssertionError


@pytest_asyncio.fixture
async def machines(
    database: Database,
    database_url: str,
    tpm_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Machines]:
    monkeypatch.setattr(attestation, "AT_ONCE", 2)
    monkeypatch.setattr(attestation, "SILENT_AT_ONCE", 1)
    quick = replace(fix_machines.SETTINGS, timeout_s=0.2)
    monkeypatch.setattr(fix_machines, "SETTINGS", quick)
    async with some_machines(database, database_url, tpm_dir) as started:
        yield started


async def test_who_did_not_answer_leaves_room_for_those_who_do(
    machines: Machines,
) -> None:
    *silent, healthy = [await machines.restored() for _ in range(4)]
    source = SomeSilent(machines.tpms)
    source.silent = {one.name for one in silent}
    machines.sources["swtpm"] = source
    await machines.kill("fabric/attestation")
    source.asked.clear()

    async def ask(times: int) -> None:
        for one in silent:
            machines.attestation.tell(Attest(one.id, "manual"))

        async def all_were() -> bool | None:
            asked = [name for name in source.asked if name in source.silent]
            return len(asked) >= times * len(silent) or None

        await until(all_were)

    async def all_noted() -> bool | None:
        return not await machines.attestation.ask(InFlight(), within_s=ASK_S) or None

    await ask(1)
    await until(all_noted)
    before = (await machines.posture(healthy.id)).version

    async def confirmed() -> bool | None:
        return (await machines.posture(healthy.id)).version > before or None

    source.most = 0
    asked = asyncio.ensure_future(ask(2))
    machines.attestation.tell(Attest(healthy.id, "manual"))
    await until(confirmed)
    await asked

    assert source.most <= 1
