"""What is written to streams past their buffer, over real connections."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from tests.http.client import Caller
from tests.http.conftest import Still

TRUST = "/api/trust/registry/stream"
LAST = 400
END = b"\n\n"


@asynccontextmanager
async def opened(
    caller: Caller, path: str = TRUST, version: str = "1.1"
) -> AsyncIterator[asyncio.StreamReader]:
    """Open a stream by hand; what is not read stays with the kernel."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", caller.runtime.port, limit=2**20
    )
    try:
        head = f"GET {path} HTTP/{version}\r\nAuthorization: Bearer {caller.token}"
        writer.write(f"{head}\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"retry: 2000\n\n")
        yield reader
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def versions(reader: asyncio.StreamReader, last: int) -> list[int]:
    """Read trust events up to the version `last`, whatever comes between."""
    found: list[int] = []
    while not found or found[-1] < last:
        frame = await reader.readuntil(END)
        if event := re.search(rb"event: trust\ndata: (.*)\n\n", frame):
            found.append(orjson.loads(event[1])["version"])
    return found


def write_one_by_one(vm: Still, last: int) -> None:
    """Commit versions 2 to `last` by themselves, with a provenance of 20 kB each."""
    vm.runtime.rows(
        f"""
        DO $$ BEGIN FOR n IN 2..{last} LOOP
        INSERT INTO runtime_vm_trust_history (
               runtime_vm_instance_id, current_status, current_lifecycle_state,
               transition_reason, remediation_state, remediation_attempts,
               registry_version, actor, provenance)
        VALUES ({vm.id}, 'unknown', 'suspect', 'flood', 'remediation:none', 0, n,
                'test', jsonb_build_object('x', repeat(md5(n::text), 625)));
        COMMIT;
        END LOOP; END $$
        """
    )


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_who_stops_reading_for_a_while_misses_nothing_and_holds_up_nobody(
    alice: Caller, vm: Still
) -> None:
    path = f"{TRUST}?include=provenance"
    async with opened(alice, path) as slow, opened(alice, path) as quick:
        writing = asyncio.create_task(asyncio.to_thread(write_one_by_one, vm, LAST))

        assert await versions(quick, LAST) == list(range(2, LAST + 1))
        await writing
        assert await versions(slow, LAST) == list(range(2, LAST + 1))

        vm.runtime.rows(
            """
            UPDATE runtime_vm_trust_registry SET version = %s
             WHERE runtime_vm_instance_id = %s
            """,
            LAST,
            vm.id,
        )
        vm.move("suspect", "pending")
        assert await versions(slow, LAST + 1) == [LAST + 1]


async def test_a_body_that_is_not_sent_in_chunks_has_no_chunks(
    alice: Caller, vm: Still
) -> None:
    async with opened(alice, version="1.0") as reader:
        for status in ("unknown", "pending", "unknown"):
            vm.move("suspect", status)

        text = b""
        while text.count(b"event: trust\n") < 3:  # a heartbeat may come between
            text += await reader.readuntil(END)

    assert not re.search(rb"(?m)^[0-9a-f]+\r$", text)
    assert text.count(b"event: trust\n") == 3


async def test_who_hangs_up_while_events_come_disturbs_nobody(
    alice: Caller, vm: Still
) -> None:
    async with opened(alice) as stays:
        for at in range(5):
            async with opened(alice):
                vm.move("suspect", "unknown" if at % 2 else "pending")
        vm.move("suspect", "unknown")

        assert await versions(stays, 7) == [2, 3, 4, 5, 6, 7]
