"""The keys of results: for everybody, and at no cost to the database."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.fix_fabric import until
from tests.fix_runtime import Served
from tests.http.client import Caller
from trustfabric.errors import UnavailableError
from trustfabric.http.jwks import KEPT, Jwks, Keys

JWKS = "/.well-known/jwks.json"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Store:
    """Where keys are read from, as slowly as a test likes."""

    def __init__(self) -> None:
        self.keys: list[dict[str, str]] = [{"kid": "one"}]
        self.reads = 0
        self.now = NOON
        self.open = asyncio.Event()
        self.open.set()
        self.away = False
        self.jwks = Jwks()

    async def read(self) -> Keys:
        self.reads += 1
        found = tuple(self.keys)
        await self.open.wait()
        if self.away:
            raise UnavailableError("away")
        return found

    async def ask(self) -> list[str]:
        return [key["kid"] for key in await self.jwks.get(self.read, lambda: self.now)]


async def test_keys_are_read_once_in_a_while() -> None:
    store = Store()
    assert await store.ask() == ["one"]
    store.keys.append({"kid": "another's"})

    store.now += KEPT - timedelta(milliseconds=1)
    before = await store.ask()
    store.now += timedelta(milliseconds=1)

    assert before == ["one"]
    assert await store.ask() == ["one", "another's"]
    assert store.reads == 2


async def test_a_clock_that_goes_back_keeps_no_keys() -> None:
    store = Store()
    await store.ask()
    store.keys.append({"kid": "new"})

    store.now -= timedelta(hours=1)

    assert await store.ask() == ["one", "new"]


async def test_a_new_key_is_there_at_once_though_they_are_just_being_read() -> None:
    store = Store()
    store.open.clear()
    early = asyncio.ensure_future(store.ask())
    await asyncio.sleep(0)

    store.keys.append({"kid": "new"})
    store.jwks.forget()
    late = asyncio.ensure_future(store.ask())
    store.open.set()

    assert await early == ["one"]
    assert await late == ["one", "new"]


async def test_who_waited_in_vain_waits_once() -> None:
    store = Store()
    store.open.clear()
    store.away = True
    asking = [asyncio.ensure_future(store.ask()) for _ in range(50)]
    await asyncio.sleep(0)

    store.open.set()
    refused = await asyncio.gather(*asking, return_exceptions=True)
    store.away = False

    assert {type(each) for each in refused} == {UnavailableError}
    assert store.reads == 1
    assert await store.ask() == ["one"]


async def test_one_who_gives_up_spoils_it_for_nobody_who_comes_later() -> None:
    store = Store()
    store.open.clear()
    first = asyncio.ensure_future(store.ask())
    await asyncio.sleep(0)

    first.cancel()
    await asyncio.wait([first])
    store.open.set()

    assert await store.ask() == ["one"]


@pytest.mark.slow
async def test_a_crowd_of_strangers_takes_one_connection(
    nobody: Caller, runtime: Served
) -> None:
    with psycopg.connect(runtime.database_url) as conn:
        conn.execute("LOCK attestation_verifier_keys IN ACCESS EXCLUSIVE MODE")

        async def waiting() -> int | None:
            ((number,),) = runtime.rows(
                """
                SELECT count(*) FROM pg_locks WHERE NOT granted
                   AND relation = 'attestation_verifier_keys'::regclass
                """
            )
            return number or None

        async def one_waits() -> list[asyncio.Task[int]] | None:
            """Ask until the keys that are kept are too old."""
            still = {asyncio.create_task(ask()) for _ in range(40)}
            while still:
                done, still = await asyncio.wait(still, timeout=0.1)
                assert {each.result() for each in done} <= {200}
                if still and await waiting():
                    return list(still)
            return None

        async def ask() -> int:
            return (await nobody.call("GET", JWKS)).status

        asking = await until(one_waits, "keys to be read")
        assert await waiting() == 1
        conn.rollback()

    assert {await each for each in asking} == {200}
    assert json.loads((await nobody.call("GET", JWKS)).body)["keys"]
