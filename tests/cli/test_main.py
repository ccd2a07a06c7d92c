"""The command table: exit codes, global options, and what `--help` costs."""

import asyncio
import json
import socket
import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT, Mcpctl, Spawn
from tests.cli.host import TOKEN, Answer, Asked, Host, registry_row

ROW = "/api/trust/registry/7"


@pytest.mark.parametrize(
    ("status", "slug", "code"),
    [
        (400, "malformed", 1),
        (401, "unauthenticated", 4),
        (403, "forbidden", 4),
        (403, "self-approval", 4),
        (404, "not-found", 1),
        (409, "illegal-transition", 1),
        (409, "version-conflict", 5),
        (409, "version-required", 5),
        (422, "invalid", 1),
        (503, "unavailable", 1),
    ],
)
async def test_a_refusal_has_the_exit_code_of_its_kind(
    host: Host, mcpctl: Mcpctl, status: int, slug: str, code: int
) -> None:
    host.refuses("GET", ROW, status, slug, expected_version=1, current_version=2)

    done = await mcpctl("trust", "get", "7")

    assert done.code == code
    assert done.out == ""
    assert f"refused: {slug}" in done.err
    assert slug in done.err


async def test_a_refusal_that_is_no_problem_document_still_names_the_status(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("GET", ROW, b"<html>bad gateway</html>", 502)

    done = await mcpctl("trust", "get", "7")

    assert done.code == 1
    assert "502" in done.err


async def test_nobody_listening_is_exit_code_3(mcpctl: Mcpctl) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    done = await mcpctl("trust", "get", "7", url=f"http://127.0.0.1:{port}")

    assert done.code == 3
    assert f"127.0.0.1:{port}" in done.err


async def test_a_host_that_never_answers_is_exit_code_3(mcpctl: Mcpctl) -> None:
    gone = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        gone.set()

    async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        done = await mcpctl(
            *("--timeout", "0.2", "servers", "start", "3"),
            url=f"http://127.0.0.1:{port}",
        )
        await gone.wait()

    assert done.code == 3
    assert "may have been done" in done.err


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("trust", "nonsense"),
        ("trust", "get"),
        ("trust", "get", "seven"),
        ("trust", "get", "0"),
        ("trust", "registry", "--lifecycle", "broken"),
        ("trust", "registry", "--limit", "-1"),
        ("trust", "transition", "7"),
        ("trust", "transition", "7", "--metadata", "{"),
        ("trust", "transition", "7", "--metadata", "[1]"),
        ("trust", "transition", "7", "--metadata", "@/no/such/file"),
        ("remediation", "runs", "enqueue", "7"),
        ("remediation", "watch", "--max-events", "0"),
        ("evaluations", "plan", "1"),
        ("evaluations", "plan", "1", "--note", "x", "--unset-note"),
        ("--host", "localhost:3000", "trust", "registry"),
        ("--host", "ftp://localhost", "trust", "registry"),
        ("--host", "http://me:secret@localhost", "trust", "registry"),
        ("--host", "http://localhost/?token=x", "trust", "registry"),
        ("--token", "two words", "trust", "registry"),
        ("--timeout", "0", "trust", "registry"),
    ],
)
async def test_what_cannot_be_meant_is_exit_code_2_and_asks_nobody(
    host: Host, mcpctl: Mcpctl, args: tuple[str, ...]
) -> None:
    done = await mcpctl(*args)

    assert done.code == 2
    assert done.out == ""
    assert done.err
    assert host.asked == []


async def test_an_answer_that_is_not_json_is_exit_code_1(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("GET", ROW, b"hello")

    done = await mcpctl("trust", "get", "7")

    assert done.code == 1
    assert "not JSON" in done.err


async def test_host_and_token_come_from_the_environment(
    host: Host, spawn: Spawn
) -> None:
    host.answers("GET", ROW, registry_row())

    process = await spawn("trust", "get", "7", "--json")
    out, err = await process.communicate()

    assert (process.returncode, err) == (0, b"")
    assert json.loads(out) == registry_row()
    assert host.last("GET", ROW).headers["Authorization"] == f"Bearer {TOKEN}"


async def test_a_token_file_wins_over_the_environment(
    host: Host, spawn: Spawn, tmp_path: object
) -> None:
    path = f"{tmp_path}/token"
    with open(path, "w") as file:  # noqa: PTH123
        file.write("eyJmaWxl.x.y\n")
    host.answers("GET", ROW, registry_row())

    process = await spawn("--token-file", path, "trust", "get", "7")
    await process.communicate()

    assert host.last("GET", ROW).headers["Authorization"] == "Bearer eyJmaWxl.x.y"


async def test_s35_the_token_is_in_a_header_only_and_never_printed(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.refuses("GET", ROW, 401, "unauthenticated")

    done = await mcpctl("trust", "get", "7")

    [asked] = host.asked
    assert asked.headers["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in asked.path
    assert TOKEN not in str(asked.query)
    assert TOKEN not in done.out + done.err


async def test_help_does_not_show_the_token_of_the_environment(spawn: Spawn) -> None:
    process = await spawn("--help")
    out, err = await process.communicate()

    assert TOKEN.encode() not in out + err


async def test_s35_a_redirect_is_not_followed_with_the_token(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.answers("GET", ROW, None, 307, Location=f"{host.url}/elsewhere")

    done = await mcpctl("trust", "get", "7")

    assert done.code == 1
    assert [asked.path for asked in host.asked] == [ROW]


async def test_a_blocked_placement_prints_every_note(
    host: Host, mcpctl: Mcpctl
) -> None:
    notes = ["trust:lifecycle:quarantined", "policy_hook:remediation_gate=held:all"]
    path = "/api/servers/3/start"
    host.refuses("POST", path, 409, "placement-blocked", notes=notes)

    done = await mcpctl("servers", "start", "3")

    assert done.code == 1
    for note in notes:
        assert note in done.err


async def test_lists_follow_the_link_to_the_next_page(
    host: Host, mcpctl: Mcpctl
) -> None:
    rows = [registry_row(n) for n in range(1, 251)]
    host.lists("/api/trust/registry", rows)

    done = await mcpctl("trust", "registry", "--json")

    assert json.loads(done.out) == rows
    assert done.err == ""
    assert len(host.asked) == 3


async def test_a_limit_ends_the_list_and_says_that_there_is_more(
    host: Host, mcpctl: Mcpctl
) -> None:
    rows = [registry_row(n) for n in range(1, 251)]
    host.lists("/api/trust/registry", rows)

    done = await mcpctl("trust", "registry", "--json", "--limit", "120")

    assert json.loads(done.out) == rows[:120]
    assert "more" in done.err
    assert len(host.asked) == 2


async def test_limit_0_is_every_row(host: Host, mcpctl: Mcpctl) -> None:
    host.lists("/api/servers", [{"id": n} for n in range(700)])

    done = await mcpctl("servers", "list", "--json", "--limit", "0")

    assert len(json.loads(done.out)) == 700


async def test_a_next_page_at_another_host_is_refused(
    host: Host, mcpctl: Mcpctl
) -> None:
    def elsewhere(_asked: Asked) -> Answer:
        return Answer([], headers={"Link": '<http://other.example/x>; rel="next"'})

    host.replies["GET", "/api/servers"] = elsewhere

    done = await mcpctl("servers", "list")

    assert done.code == 1
    assert "another host" in done.err


async def test_a_path_in_the_host_is_kept(host: Host, mcpctl: Mcpctl) -> None:
    host.answers("GET", "/behind/proxy/api/servers", [])

    done = await mcpctl("servers", "list", "--json", url=f"{host.url}/behind/proxy/")

    assert (done.code, done.out) == (0, "[]\n")


@pytest.mark.slow
async def test_a_reader_that_leaves_ends_it_without_a_traceback(
    host: Host, spawn: Spawn
) -> None:
    host.lists("/api/servers", [{"id": n, "name": "x" * 500} for n in range(3000)])

    process = await spawn("servers", "list", "--limit", "0", "--json")
    assert process.stdout is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]
    _, err = await process.communicate()

    assert process.returncode == 1
    assert err == b""


def test_help_needs_no_http_client_no_table_and_no_shell() -> None:
    code = (
        "import sys\n"
        "from trustfabric.main import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n"
        "    heavy = {'aiohttp', 'asyncio', 'rich', 'prompt_toolkit', 'pydantic'}\n"
        "    print(sorted(heavy & sys.modules.keys()), file=sys.stderr)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stderr.strip() == "[]"
    for group in ("trust", "remediation", "servers", "shell", "serve", "attest"):
        assert f"\n  {group} " in done.stdout


async def test_who_sent_no_token_is_told_where_to_put_one(
    host: Host, spawn: Spawn
) -> None:
    host.refuses("GET", ROW, 401, "unauthenticated")

    process = await spawn("trust", "get", "7", MCP_HOST_TOKEN="")
    _, err = await process.communicate()

    assert process.returncode == 4
    assert b"MCP_HOST_TOKEN" in err
