"""The agent's line protocol, over sockets and a port, and the host's end of it."""

import asyncio
import contextlib
import json
import os
import pty
import shutil
import stat
import threading
import tty
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trustfabric.agent import serve
from trustfabric.agent.answers import Sources
from trustfabric.agent.serve import MAX_QUESTION, reply_to, serve_port, serve_socket
from trustfabric.agent.transport import UnreachableError
from trustfabric.domain.evidence.model import Reject
from trustfabric.domain.evidence.tpm2 import parse_document
from trustfabric.drivers import agents
from trustfabric.drivers.agents import AgentSockets, AgentVsock
from trustfabric.drivers.libvirt_launch import AGENT_PORT
from trustfabric.drivers.swtpm import SoftTpms
from trustfabric.errors import InvalidError, UnavailableError

NONCE = bytes(range(32))
NOWHERE = Sources(tpm=Path("/none"), tsm=Path("/none"), sev_guest=Path("/none"))
ASKED = json.dumps({"extra_data": NONCE.hex()}).encode()

needs_swtpm = pytest.mark.skipif(
    shutil.which("swtpm") is None, reason="needs the Debian package swtpm"
)


def said(line: bytes, sources: Sources = NOWHERE) -> dict[str, Any]:
    reply = reply_to(line, sources)
    assert reply.endswith(b"\n")
    assert reply.count(b"\n") == 1
    answer: dict[str, Any] = json.loads(reply)
    assert len(answer.keys() - {"extra_data"}) == 1
    return answer


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"{}",
        b'{"extra_data": 7}',
        b'{"extra_data": ""}',
        b'{"extra_data": "zz"}',
        b'{"extra_data": "00", "extra_data": "00"}',
        b'{"extra_data": "00", "run": "/bin/sh"}',
        b'{"extra_data": "00", "kind": "abacus"}',
        b'{"extra_data": "00", "kind": 7}',
        b'{"extra_data": "' + b"00" * 65 + b'"}',
        b"[" * 4000,
    ],
)
def test_a_question_that_is_none_is_refused_in_words(line: bytes) -> None:
    assert said(line)["refused"]


@pytest.mark.parametrize("kind", ["tpm", "amd-sev-snp", "intel-tdx", "nvidia-gpu"])
def test_what_is_not_there_is_refused_in_words(kind: str) -> None:
    asked = json.dumps({"extra_data": bytes(64).hex(), "kind": kind})

    assert kind in said(asked.encode())["refused"]


def test_the_port_s_name_is_the_one_that_the_domain_gives_it() -> None:
    assert serve.VIRTIO_NAME == AGENT_PORT


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
async def guest(tmp_path: Path, executor: ThreadPoolExecutor) -> AsyncIterator[Sources]:
    """One with a TPM."""
    tpms = SoftTpms(tmp_path / "tpms", executor, within_s=10.0)
    await tpms.start("alpha")
    yield Sources(tpm=tmp_path / "tpms" / "alpha" / "tpm.sock")
    await tpms.close()


def in_background(work: Any, *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def listening(path: Path, sources: Sources) -> None:
    """Serve on a socket, as the host's end of a port looks."""
    in_background(serve_socket, serve.listen_unix(path), sources)


@needs_swtpm
async def test_the_host_gets_the_evidence_that_it_asked_for(
    tmp_path: Path, guest: Sources
) -> None:
    listening(tmp_path / "alpha.sock", guest)
    sockets = AgentSockets(tmp_path)

    document = await sockets.collect("alpha", NONCE)
    again = await sockets.collect("alpha", bytes(32))

    assert parse_document(document).extra_data == NONCE
    assert parse_document(again).extra_data == bytes(32)


@needs_swtpm
async def test_several_questions_of_one_connection_are_answered_in_order(
    tmp_path: Path, guest: Sources
) -> None:
    listening(tmp_path / "s", guest)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")

    writer.write(ASKED[:10])
    await writer.drain()
    writer.write(ASKED[10:] + b"\nnonsense\n" + ASKED + b"\n")
    replies = [json.loads(await reader.readline()) for _ in range(3)]
    writer.close()

    assert [list(reply) for reply in replies] == [
        ["extra_data", "evidence"],
        ["refused"],
        ["extra_data", "evidence"],
    ]


async def test_a_line_without_an_end_is_hung_up_on(tmp_path: Path) -> None:
    listening(tmp_path / "s", NOWHERE)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")

    writer.write(b"x" * (4 * MAX_QUESTION))
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()

    # And the next one is served.
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
    writer.write(ASKED + b"\n")
    assert "refused" in json.loads(await reader.readline())
    writer.close()


async def test_a_serial_port_is_answered_on() -> None:
    """A pseudo terminal stands for the port: bytes, and a character device."""
    host, guest_end = pty.openpty()
    tty.setraw(guest_end)
    path = Path(os.ttyname(guest_end))
    in_background(serve_port, path, NOWHERE)

    os.write(host, ASKED + b"\n")
    reply = b""
    while not reply.endswith(b"\n"):
        reply += await asyncio.to_thread(os.read, host, 4096)

    assert "refused" in json.loads(reply)


def test_a_port_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        serve_port(tmp_path / "none", NOWHERE)


def test_a_socket_is_its_owner_s_alone_and_makes_room_for_the_next(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    for _ in range(2):
        with serve.listen_unix(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_no_socket_stays_and_no_place_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("kept")
    for path in (tmp_path / "s", tmp_path / "none" / "s", tmp_path / ("x" * 200)):
        with pytest.raises(UnreachableError):
            serve.listen_unix(path)
    assert (tmp_path / "s").read_text() == "kept"


def test_vsock_listens_where_there_is_one() -> None:
    try:
        server = serve.listen_vsock(serve.PORT)
    except UnreachableError as error:
        pytest.skip(str(error))
    with server:
        assert server.getsockname()[1] == serve.PORT


# --- the host's end -------------------------------------------------------------------


async def answering(path: Path, answer: bytes) -> asyncio.Server:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    return await asyncio.start_unix_server(talk, path)


@pytest.mark.parametrize(
    "answer", [b"", b"half a line", b'{"refused": "no TPM here"}\n']
)
async def test_no_answer_is_unavailable(tmp_path: Path, answer: bytes) -> None:
    async with await answering(tmp_path / "alpha.sock", answer):
        with pytest.raises(UnavailableError):
            await AgentSockets(tmp_path).collect("alpha", NONCE)


async def test_an_answer_to_what_was_asked_before_is_passed_over(
    tmp_path: Path,
) -> None:
    """As on a port, where what a guest says late waits for whoever asks next."""
    late = json.dumps({"extra_data": bytes(32).hex(), "evidence": "late"})
    own = json.dumps({"extra_data": NONCE.hex(), "evidence": "own"})
    refused = json.dumps({"extra_data": bytes(8).hex(), "refused": "no"})
    answer = "".join(f"{line}\n" for line in (late, refused, late, own))

    async with await answering(tmp_path / "alpha.sock", answer.encode()):
        presented = await AgentSockets(tmp_path).collect("alpha", NONCE)

    assert presented == b"own"


async def test_answers_to_others_without_an_end_are_no_answer(tmp_path: Path) -> None:
    other = json.dumps({"extra_data": bytes(32).hex(), "evidence": "late"}).encode()
    own = json.dumps({"extra_data": NONCE.hex(), "evidence": "own"}).encode()
    lines = (other + b"\n") * 1000 + own + b"\n"

    async with await answering(tmp_path / "alpha.sock", lines):
        with pytest.raises(UnavailableError, match="others only"):
            await AgentSockets(tmp_path).collect("alpha", NONCE)


async def test_no_agent_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        await AgentSockets(tmp_path).collect("alpha", NONCE)


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\n",
        b"[]\n",
        b'{"evidence": 7}\n',
        b'{"evidence": "x"}\n',
        b'{"evidence": "\\ud800"}\n',
        b"x" * 300_000 + b"\n",
    ],
)
async def test_nonsense_is_presented_to_be_judged(
    tmp_path: Path, answer: bytes
) -> None:
    async with await answering(tmp_path / "alpha.sock", answer):
        presented = await AgentSockets(tmp_path).collect("alpha", NONCE)

    with pytest.raises(Reject):
        parse_document(presented)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "a.b"])
async def test_a_name_that_is_no_instance_is_invalid(tmp_path: Path, name: str) -> None:
    for source in (AgentSockets(tmp_path), AgentVsock("rt-1")):
        with pytest.raises(InvalidError):
            await source.collect(name, NONCE)


@pytest.mark.skipif(not Path("/dev/vsock").exists(), reason="needs vsock")
async def test_nobody_behind_a_context_id_is_unavailable() -> None:
    with pytest.raises(UnavailableError):
        await AgentVsock("rt-1").collect("vm-nobody", NONCE)


def test_both_ends_speak_of_the_same_port() -> None:
    assert agents.VSOCK_PORT == serve.PORT
