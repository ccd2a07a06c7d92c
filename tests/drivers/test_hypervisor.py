"""The HTTP driver against the reference hypervisor, well-behaved and otherwise."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest
from pydantic import SecretStr

from tests.drivers.links import BOOT, Heard, a_spec
from tests.drivers.reference_hypervisor import ReferenceHypervisor
from trustfabric.domain.ports import ConsoleEntry
from trustfabric.domain.seeds import Seed
from trustfabric.domain.vms import IsolationTier, PowerChange, is_structural
from trustfabric.drivers.hypervisor import HttpProvisioner
from trustfabric.errors import (
    InvalidError,
    NotFoundError,
    UnavailableError,
)


@pytest.fixture
async def driver(
    reference: ReferenceHypervisor, heard: Heard
) -> AsyncIterator[HttpProvisioner]:
    driver = HttpProvisioner(reference.url, timeout_s=2.0)
    await driver.open(heard.on_event, heard.on_lost)
    reference.requests.clear()
    yield driver
    await driver.close()


async def test_an_order_says_what_is_wanted(
    driver: HttpProvisioner, reference: ReferenceHypervisor
) -> None:
    spec = a_spec(tier=IsolationTier.SEV_SNP)

    defined = await driver.define(spec)

    assert reference.machines[defined.hypervisor_name].order == {
        "server_id": 3,
        "image": "tiny",
        "tier": "sev-snp",
        "capabilities": [],
        "config": {
            "name": spec.name,
            "memory_mib": 64,
            "vcpu_count": 1,
            "attestation": {"kind": "tpm"},
        },
    }
    assert defined.tier is IsolationTier.SEV_SNP
    assert defined.attestation_hint == "tpm"
    assert not defined.simulated


async def test_an_order_carries_what_cloud_init_is_given(
    driver: HttpProvisioner, reference: ReferenceHypervisor
) -> None:
    spec = replace(a_spec(), seed=Seed("#cloud-config\n"))

    made = await driver.define(spec)

    given = reference.machines[made.hypervisor_name].order["config"]["cloud_init"]
    assert given["user_data"] == "#cloud-config\n"
    assert spec.name in given["meta_data"]


async def test_a_refusal_that_quotes_secrets_is_not_repeated(
    reference: ReferenceHypervisor, heard: Heard
) -> None:
    reference.token = "s3cret-token"
    driver = HttpProvisioner(reference.url, token=lambda: SecretStr("s3cret-token"))
    await driver.open(heard.on_event, heard.on_lost)
    reference.quotes = True
    seeded = replace(a_spec(), seed=Seed("#cloud-config\npassword: hunter2\n"))
    told = []

    for spec in (a_spec(), seeded):
        reference.fail_next = [422]
        with pytest.raises(InvalidError) as refused:
            await driver.define(spec)
        told.append(str(refused.value))
    reference.fail_next = [422]
    with pytest.raises(InvalidError) as refused:
        await driver.console_tail("hv-1", 10)

    told.append(str(refused.value))
    await driver.close()
    assert not any("s3cret" in each or "hunter2" in each for each in told)
    assert "Bearer ***" in told[0]


async def test_less_isolation_than_ordered_is_refused_and_cleared_away(
    driver: HttpProvisioner, reference: ReferenceHypervisor
) -> None:
    reference.confirmed_tier = "standard"

    with pytest.raises(InvalidError) as refused:
        await driver.define(a_spec(tier=IsolationTier.TDX))

    assert is_structural(refused.value)
    assert reference.machines == {}


async def test_an_order_repeated_after_a_lost_answer_makes_one_vm(
    driver: HttpProvisioner, reference: ReferenceHypervisor, heard: Heard
) -> None:
    spec = a_spec()
    first = await driver.define(spec)
    heir = HttpProvisioner(reference.url)
    await heir.open(heard.on_event, heard.on_lost)

    again = await heir.define(spec)

    await heir.close()
    assert again.hypervisor_name == first.hypervisor_name
    assert len(reference.machines) == 1


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_what_is_harmless_to_repeat_is_tried_again(
    driver: HttpProvisioner, reference: ReferenceHypervisor, status: int
) -> None:
    name = (await driver.define(a_spec())).hypervisor_name
    reference.fail_next = [status, status]

    await driver.undefine(name)

    assert reference.machines == {}


async def test_an_order_is_never_repeated_by_itself(
    driver: HttpProvisioner, reference: ReferenceHypervisor
) -> None:
    reference.fail_next = [503]

    with pytest.raises(UnavailableError):
        await driver.define(a_spec())

    assert reference.requests == [("POST", "/instances")]


async def test_a_hypervisor_that_goes_on_failing_is_unavailable(
    driver: HttpProvisioner, reference: ReferenceHypervisor
) -> None:
    name = (await driver.define(a_spec())).hypervisor_name
    reference.fail_next = [500] * 3

    with pytest.raises(UnavailableError):
        await driver.stop(name, grace_s=0)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidError),
        (404, NotFoundError),
        (422, InvalidError),
        (302, UnavailableError),
        (401, UnavailableError),
        (403, UnavailableError),
        (429, UnavailableError),
        (500, UnavailableError),
    ],
)
async def test_a_status_is_one_kind_of_error(
    driver: HttpProvisioner,
    reference: ReferenceHypervisor,
    status: int,
    error: type[Exception],
) -> None:
    reference.fail_next = [status]

    with pytest.raises(error) as refused:
        await driver.define(a_spec())

    assert type(refused.value) is error


async def test_one_that_sends_visitors_elsewhere_answers(
    reference: ReferenceHypervisor, heard: Heard
) -> None:
    driver = HttpProvisioner(reference.url)
    reference.fail_next = [302, 307]

    await driver.open(heard.on_event, heard.on_lost)

    assert await driver.observe() == {}
    assert heard.lost == []
    await driver.close()


async def test_the_right_token_opens(
    reference: ReferenceHypervisor, heard: Heard
) -> None:
    reference.token = "secret-1"
    driver = HttpProvisioner(reference.url, token=lambda: SecretStr("secret-1"))

    await driver.open(heard.on_event, heard.on_lost)

    assert driver.credentials["secret_provided"] is True
    await driver.close()


async def test_a_wrong_token_is_one_clear_error(
    reference: ReferenceHypervisor, heard: Heard
) -> None:
    reference.token = "secret-1"
    driver = HttpProvisioner(reference.url, token=lambda: SecretStr("other-2"))

    with pytest.raises(UnavailableError) as refused:
        await driver.open(heard.on_event, heard.on_lost)

    assert refused.value.facts["cause"] == "credentials"
    assert "other-2" not in str(refused.value)
    assert len(reference.requests) == 1


async def test_a_slow_hypervisor_is_given_up_and_stays_linked(
    reference: ReferenceHypervisor, heard: Heard
) -> None:
    driver = HttpProvisioner(reference.url, timeout_s=0.1)
    await driver.open(heard.on_event, heard.on_lost)
    name = (await driver.define(a_spec())).hypervisor_name
    reference.delay_s = 0.5

    with pytest.raises(UnavailableError) as refused:
        await driver.start(name, BOOT)

    assert refused.value.facts["cause"] == "deadline"
    assert heard.lost == []
    await driver.close()


async def test_a_hypervisor_that_is_gone_is_a_lost_link_until_it_is_back(
    driver: HttpProvisioner, reference: ReferenceHypervisor, heard: Heard
) -> None:
    name = (await driver.define(a_spec())).hypervisor_name
    await reference.vanish()

    with pytest.raises(UnavailableError):
        await driver.observe()
    await heard.until(lambda: bool(heard.lost))
    with pytest.raises(UnavailableError):
        await driver.start(name, BOOT)
    assert len(heard.lost) == 1
    with pytest.raises(UnavailableError):
        await driver.open(heard.on_event, heard.on_lost)


async def test_an_endpoint_where_nobody_listens_does_not_open(heard: Heard) -> None:
    driver = HttpProvisioner("http://127.0.0.1:9")

    with pytest.raises(UnavailableError):
        await driver.open(heard.on_event, heard.on_lost)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "hypervisor",
        "ftp://host",
        "http://",
        "http://user:pw@host",
        "http://host/?token=x",
    ],
)
def test_an_endpoint_is_a_plain_url(endpoint: str) -> None:
    with pytest.raises(InvalidError):
        HttpProvisioner(endpoint)


@pytest.mark.parametrize("name", ["../admin", "a/b", "", "a?x=1", "a b", "%2e%2e"])
async def test_a_name_that_is_no_name_is_never_sent(
    driver: HttpProvisioner, reference: ReferenceHypervisor, name: str
) -> None:
    with pytest.raises(InvalidError):
        await driver.start(name, BOOT)

    assert reference.requests == []


async def test_the_tail_is_as_many_lines_as_asked(
    driver: HttpProvisioner, reference: ReferenceHypervisor
) -> None:
    name = (await driver.define(a_spec())).hypervisor_name
    reference.machines[name].lines = [f"line {n}" for n in range(10)]

    assert (await driver.console_tail(name, 3)).lines == ("line 7", "line 8", "line 9")
    assert (await driver.console_tail(name, 0)).lines == ()


async def test_lines_cannot_drive_a_terminal(
    driver: HttpProvisioner, reference: ReferenceHypervisor
) -> None:
    name = (await driver.define(a_spec())).hypervisor_name
    reference.machines[name].lines = ["\x1b[2Jhello\x07"]

    assert (await driver.console_tail(name, 3)).lines == ("hello",)


async def test_a_console_without_a_stream_ends_at_once(driver: HttpProvisioner) -> None:
    name = (await driver.define(a_spec())).hypervisor_name

    assert [batch async for batch in driver.console_follow(name)] == []


async def test_who_follows_again_is_told_that_lines_may_be_missing(
    driver: HttpProvisioner, reference: ReferenceHypervisor
) -> None:
    name = (await driver.define(a_spec())).hypervisor_name
    await driver.start(name, BOOT)
    reference.machines[name].lines = ["one"]

    batches = [batch async for batch in driver.console_follow(name, after=7)]

    first, second = (item for batch in batches for item in batch)
    assert isinstance(first, ConsoleEntry)
    assert (first.seq, first.breaks) == (8, True)
    assert second == ConsoleEntry(9, "one")


async def test_a_silent_console_is_heard_from_all_the_same(
    driver: HttpProvisioner, reference: ReferenceHypervisor
) -> None:
    name = (await driver.define(a_spec())).hypervisor_name
    await driver.start(name, BOOT)
    reference.machines[name].stays = True

    async with aclosing(driver.console_follow(name, beat_s=0.05)) as batches:
        silent = [await anext(batches) for _ in range(3)]

    assert silent[-1] == ()


async def test_a_console_whose_stream_does_not_begin_is_given_up() -> None:
    served: list[asyncio.StreamWriter] = []

    async def mostly_mute(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        served.append(writer)
        with suppress(asyncio.IncompleteReadError):
            while b"GET / " in await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await reader.read()

    async with await asyncio.start_server(mostly_mute, "127.0.0.1", 0) as mute:
        port = mute.sockets[0].getsockname()[1]
        driver = HttpProvisioner(f"http://127.0.0.1:{port}", timeout_s=0.1)
        await driver.open(lambda _: None, lambda _: None)
        with pytest.raises(UnavailableError, match="no answer in time"):
            async with aclosing(driver.console_follow("vm")) as batches:
                await anext(batches)
        await driver.close()
        for writer in served:
            writer.close()
            await writer.wait_closed()


async def test_stopping_what_the_hypervisor_forgot_is_not_found(
    driver: HttpProvisioner, reference: ReferenceHypervisor, heard: Heard
) -> None:
    name = (await driver.define(a_spec())).hypervisor_name
    reference.machines.clear()

    with pytest.raises(NotFoundError):
        await driver.stop(name, grace_s=0)


async def test_events_are_told_after_the_call_returned(
    driver: HttpProvisioner, heard: Heard
) -> None:
    name = (await driver.define(a_spec())).hypervisor_name

    await driver.start(name, BOOT)
    await driver.undefine(name)

    await heard.until_heard(name, PowerChange.UNDEFINED)
    assert heard.changes(name) == [
        PowerChange.STARTED,
        PowerChange.DESTROYED,
        PowerChange.UNDEFINED,
    ]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{",
        b'{"instance_id": 7}',
        b'{"instance_id": "../x", "isolation_tier": "standard"}',
        b'{"isolation_tier": "standard"}',
        b"x" * (2 << 20),
    ],
)
async def test_an_answer_that_makes_no_sense_is_refused(
    heard: Heard, answer: bytes, a_server: Callable[[bytes], asyncio.Future[str]]
) -> None:
    driver = HttpProvisioner(await a_server(answer))
    await driver.open(heard.on_event, heard.on_lost)

    with pytest.raises(InvalidError):
        await driver.define(a_spec())

    await driver.close()


@pytest.fixture
async def a_server() -> AsyncIterator[Callable[[bytes], object]]:
    """Serves one body for everything."""
    servers: list[asyncio.Server] = []

    async def serve(body: bytes) -> str:
        async def answer(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield serve
    for server in servers:
        server.close()
        await server.wait_closed()
