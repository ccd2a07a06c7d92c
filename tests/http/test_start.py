"""Starting: what can't work is said at once, every fault a line, no secret shown."""

import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.domain.test_attestation_vectors import read
from tests.fix_runtime import SECRET, Served, free_port, mcpctl, serving, sign

pytestmark = pytest.mark.slow

ENDS = datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)
NOWHERE = "postgresql://fabric:hunter2@127.0.0.1:{port}/mcp"


def _ends(settings: Mapping[str, str], *arguments: str) -> tuple[int, list[str]]:
    process = mcpctl(
        settings, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, err = process.communicate(timeout=50)
    text = err.decode()
    assert "Traceback" not in text, text
    assert "hunter2" not in text
    return process.returncode, text.strip().splitlines()


@pytest.fixture
def usual(tmp_path: Path) -> dict[str, str]:
    """Return settings that would do, but for a database that nobody serves."""
    return {
        "TRUSTFABRIC_DATA_DIR": str(tmp_path / "data"),
        "BIND_PORT": "0",
        "JWT_SECRET": SECRET,
        "DATABASE_URL": NOWHERE.format(port=free_port()),
    }


def test_every_bad_setting_is_told_in_a_line_of_its_own(usual: dict[str, str]) -> None:
    bad = {
        "BIND_PORT": "99999",
        "BIND_ADDRESS": "everywhere",
        "SSE_HEARTBEAT_SECONDS": "soon",
        "DATABASE_URL": "mysql://root:hunter2@db/x",
        "LIBVIRT_NETWORK_TEMPLATE": '{"bridge": 7, "colour": "blue"}',
        "VM_PROVISIONER_DRIVER": "vmware",
        "LIBVIRT_LOG_TIAL": "5",
    }

    code, lines = _ends({**usual, **bad})

    assert code == 2
    for name in bad:
        assert [line for line in lines if line.startswith(name)], name


def test_a_short_secret_is_refused_where_others_can_connect(
    usual: dict[str, str],
) -> None:
    short = {**usual, "JWT_SECRET": "hunter2"}

    code, lines = _ends({**short, "BIND_ADDRESS": "0.0.0.0"})
    loopback, warned = _ends(short)

    assert (code, lines[0].partition(":")[0]) == (2, "JWT_SECRET")
    assert loopback == 1  # for want of its database
    assert any("JWT_SECRET" in line and "shorter" in line for line in warned)


def test_no_secret_is_refused_where_others_can_connect(usual: dict[str, str]) -> None:
    del usual["JWT_SECRET"]

    code, lines = _ends({**usual, "BIND_ADDRESS": "0.0.0.0"})

    assert (code, lines[0].partition(":")[0]) == (2, "JWT_SECRET")


def test_an_unreachable_database_is_said_without_its_password(
    usual: dict[str, str],
) -> None:
    code, lines = _ends(usual)

    assert code == 1
    (said,) = [line for line in lines if line.startswith("cannot start: ")]
    assert "the database is not available" in said


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://fabric:hunter2@127.0.0.1:port/mcp",
        "postgresql://fabric:hunter2@127.0.0.1/mcp?sslmode=perhaps",
        "host=127.0.0.1 password=hunter2 port",
        "postgresql://fabric:hunter2@no-such-host.invalid/mcp",
    ],
)
def test_a_garbled_database_url_is_a_clear_error_without_its_password(
    usual: dict[str, str], url: str
) -> None:
    code, lines = _ends({**usual, "DATABASE_URL": url})

    assert code in (1, 2)
    assert len(lines[-1]) > 20


@pytest.mark.parametrize("thing", ["a file", "below a file", "not ours"])
def test_a_data_directory_that_cannot_be_used_is_named(
    usual: dict[str, str], tmp_path: Path, thing: str
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    where = {
        "a file": taken,
        "below a file": taken / "data",
        "not ours": Path("/proc/trustfabric"),
    }

    code, lines = _ends({**usual, "TRUSTFABRIC_DATA_DIR": str(where[thing])})

    assert code == 2
    assert lines[-1].startswith("TRUSTFABRIC_DATA_DIR: ")


def test_a_taken_port_is_named(usual: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        code, lines = _ends({**usual, "BIND_PORT": port})

    assert code == 2
    assert port in lines[-1]


def test_a_policy_file_that_is_not_there_or_garbled_is_named(
    usual: dict[str, str], tmp_path: Path
) -> None:
    garbled = tmp_path / "policy.json"
    garbled.write_text("{")
    for path in (garbled, tmp_path / "none.json"):
        code, lines = _ends({**usual, "VM_ATTESTATION_POLICY": str(path)})

        assert code == 2, lines
        assert "VM_ATTESTATION_POLICY" in lines[-1]


def test_a_second_runtime_on_the_same_data_directory_is_refused(
    runtime: Served,
) -> None:
    code, lines = _ends(
        {
            "TRUSTFABRIC_DATA_DIR": str(runtime.data_dir),
            "DATABASE_URL": runtime.database_url,
            "JWT_SECRET": SECRET,
            "BIND_PORT": "0",
        }
    )

    assert code == 2
    assert "another runtime uses" in lines[-1]


def test_the_secret_is_made_once_and_kept_to_ourselves(
    usual: dict[str, str], tmp_path: Path
) -> None:
    del usual["JWT_SECRET"]
    command = ("token", "--sub", "7", "--role", "viewer")

    racing = [mcpctl(usual, *command, stdout=subprocess.PIPE) for _ in range(4)]
    codes = [(one.communicate()[0], one.returncode)[1] for one in racing]

    kept = tmp_path / "data" / "jwt-secret"
    assert codes == [0] * 4
    assert kept.stat().st_mode & 0o777 == 0o600
    assert len(kept.read_text()) >= 64
    assert not list(kept.parent.glob(".jwt-secret-*"))


def test_a_secret_that_was_cut_short_is_not_signed_with(
    usual: dict[str, str], tmp_path: Path
) -> None:
    del usual["JWT_SECRET"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "jwt-secret").write_text("")

    code, lines = _ends(usual)

    assert code == 2
    assert "jwt-secret" in lines[-1]


async def test_a_token_of_mcpctl_is_good(database_url: str, tmp_path: Path) -> None:
    import aiohttp

    from tests.http.client import Caller

    settings = {"JWT_ISSUER": "https://id.example", "JWT_AUDIENCE": "fabric"}
    with serving(tmp_path / "data", database_url, **settings) as served:
        process = mcpctl(
            {"JWT_SECRET": SECRET, "TRUSTFABRIC_DATA_DIR": str(served.data_dir)}
            | settings,
            *("token", "--sub", "7", "--role", "viewer"),
            stdout=subprocess.PIPE,
        )
        token = process.communicate()[0].decode().strip()
        async with aiohttp.ClientSession() as http:
            known = await Caller(served, http, token=token).get("/api/session")
            foreign = sign({"sub": "7", "role": "viewer"})
            unknown = await Caller(served, http, token=foreign).get("/api/session")

    assert known.json()["sub"] == 7
    assert known.json()["role"] == "viewer"
    unknown.problem(401, "unauthenticated")


async def test_a_scrape_says_when_collateral_runs_out_and_what_is_unusable(
    database_url: str, tmp_path: Path
) -> None:
    import aiohttp

    from tests.http.client import Caller

    folder = tmp_path / "collateral"
    for name, content in (
        (
            "intel/b0c06f000000.json",
            read("intel-tdx/v4-uptodate-phala.collateral.json"),
        ),
        ("amd/Milan.crl", b"rubbish"),
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
    settings = {"VM_ATTESTATION_COLLATERAL": str(folder)}

    with serving(tmp_path / "data", database_url, **settings) as served:
        async with aiohttp.ClientSession() as http:
            admin = Caller(served, http, token=served.token(1, "admin"))
            scrape = (await admin.get("/metrics")).body.decode()

    told = {
        (sample.name.removeprefix("trustfabric_collateral_"), sample.labels["maker"]): (
            sample.value
        )
        for family in text_string_to_metric_families(scrape)
        for sample in family.samples
        if family.name.startswith("trustfabric_collateral_")
    }
    assert told == {
        ("ends_timestamp_seconds", "intel"): ENDS.timestamp(),
        ("unusable", "amd"): 1,
        ("unusable", "intel"): 0,
    }
