"""The guest agent against a live software TPM, and against one that misbehaves."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from trustfabric.agent.evidence import tpm_evidence
from trustfabric.agent.main import FAILED, OK, UNREACHABLE, main
from trustfabric.agent.tpm import AK_ECC, AK_RSA, AttestationKey, Quote, Tpm, TpmError
from trustfabric.agent.transport import TpmUnreachableError, open_tpm
from trustfabric.domain.evidence.documents import base64_bytes
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.tpm2 import authenticate, parse_document

pytestmark = pytest.mark.skipif(
    shutil.which("swtpm") is None, reason="needs the Debian package swtpm"
)

NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tpm")
    running = subprocess.Popen(
        [
            "swtpm",
            "socket",
            "--tpm2",
            "--tpmstate",
            "dir=.",
            "--server",
            "type=unixio,path=s",
            "--ctrl",
            "type=unixio,path=c",
            "--flags",
            "not-need-init",
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (folder / "s").exists():
        assert running.poll() is None
    yield folder / "s"
    running.terminate()
    running.wait()


@pytest.fixture
def tpm(path: Path) -> Iterator[Tpm]:
    with open_tpm(path, within_s=5) as transport:
        started = Tpm(transport)
        started.startup()
        yield started


def run(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["--tpm", str(path), *words])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ["ecc", "rsa"])
def test_what_it_quotes_holds_under_what_it_enrolls(
    path: Path, capsys: pytest.CaptureFixture[str], algorithm: str
) -> None:
    _, enrolled = run(path, capsys, "enroll", "--algorithm", algorithm)
    code, evidence = run(
        path,
        capsys,
        "quote",
        NONCE.hex(),
        "--algorithm",
        algorithm,
        "--pcrs",
        "0-10,14",
    )

    public = base64_bytes(json.loads(enrolled), "tpmt_public", "enrolled")
    key = EnrolledKey.from_tpmt(public, "swtpm")
    authenticated = authenticate(parse_document(evidence.encode()), [key])
    assert code == OK
    assert authenticated.claims.extra_data == NONCE
    assert set(authenticated.claims.pcrs["sha256"]) == {*range(11), 14}


def test_it_quotes_a_larger_bank(tpm: Tpm) -> None:
    evidence = tpm_evidence(tpm, NONCE, range(24), bank="sha384")

    values = parse_document(evidence).values
    assert {len(value) for value in values} == {48}
    assert len(values) == 24


def test_it_extends_a_register(
    path: Path, capsys: pytest.CaptureFixture[str], tpm: Tpm
) -> None:
    before = tpm.pcr_read("sha256", [16])[16]
    tpm._transport.close()  # type: ignore[attr-defined]

    code, after = run(path, capsys, "extend", "16", "11" * 32)

    assert code == OK
    assert after.strip() != before.hex()


def test_a_register_that_can_be_reset_is(tpm: Tpm) -> None:
    tpm.pcr_extend(23, "sha256", b"\x01" * 32)
    assert tpm.pcr_read("sha256", [23])[23] != bytes(32)

    tpm.pcr_reset(23)

    assert tpm.pcr_read("sha256", [23])[23] == bytes(32)


def test_a_boot_register_is_not_reset(tpm: Tpm) -> None:
    with pytest.raises(TpmError):
        tpm.pcr_reset(0)


def test_keys_are_the_same_each_time_and_leave_no_handle_behind(tpm: Tpm) -> None:
    names = set()
    for _ in range(10):
        for template in (AK_ECC, AK_RSA):
            with tpm.attestation_key(template) as key:
                names.add(key.public)

    assert len(names) == 2


def test_random_bytes_are_as_many_as_asked_for(tpm: Tpm) -> None:
    assert len(tpm.random(100)) == 100
    assert tpm.random(32) != tpm.random(32)


def test_starting_twice_is_fine(tpm: Tpm) -> None:
    tpm.startup()


def test_no_tpm_is_its_own_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "none", capsys, "enroll")[0] == UNREACHABLE


def test_a_refused_command_is_a_failure(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(path, capsys, "extend", "16", "11")[0] == FAILED


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["quote"],
        ["quote", "xyz"],
        ["quote", "00" * 65],
        ["quote", "00", "--pcrs", "24"],
        ["quote", "00", "--pcrs", "a-b"],
        ["quote", "00", "--bank", "sha1"],
        ["extend", "-1", "00"],
    ],
)
def test_wrong_words_are_usage_errors(words: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(words)

    assert exited.value.code == 2


def test_it_is_a_program_of_its_own(path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "trustfabric.agent.main", "--tpm", path, "enroll"],
        check=True,
        capture_output=True,
    )

    assert set(json.loads(ran.stdout)) == {"name", "tpmt_public"}


class Script:
    """A transport that answers from a list."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    def exchange(self, command: bytes) -> bytes:
        code = self.codes.pop(0)
        return bytes.fromhex("8001 0000000E") + code.to_bytes(4, "big") + b"\0\2ab"


@pytest.mark.parametrize("busy", [0x922, 0x90A, 0x908])
def test_a_busy_tpm_is_asked_again(busy: int) -> None:
    assert Tpm(Script(busy, busy, 0)).random(2) == b"ab"


def test_a_tpm_that_is_always_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trustfabric.agent.tpm._PAUSE_S", 0)

    with pytest.raises(TpmError, match="0x922"):
        Tpm(Script(*[0x922] * 1000)).random(2)


HANGS_UP = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print(flush=True)
client, _ = server.accept()
client.recv(99)
client.send(bytes.fromhex(sys.argv[2]))
client.close()
"""


@pytest.mark.parametrize("answer", ["", "8001", "80010000FFFF00000000"])
def test_an_answer_that_is_none_is_unreachable(tmp_path: Path, answer: str) -> None:
    arguments = [sys.executable, "-c", HANGS_UP, str(tmp_path / "s"), answer]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()

        with (
            open_tpm(tmp_path / "s", within_s=5) as transport,
            pytest.raises(TpmUnreachableError),
        ):
            Tpm(transport).random(2)


def test_a_file_that_is_no_tpm_is_unreachable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    assert run(tmp_path / "file", capsys, "enroll")[0] == UNREACHABLE
    assert run(tmp_path, capsys, "enroll")[0] == UNREACHABLE


def test_registers_that_never_stand_still_give_no_evidence(tpm: Tpm) -> None:
    class Racing(Tpm):
        def quote(
            self,
            key: AttestationKey,
            extra_data: bytes,
            selection: Mapping[str, Sequence[int]],
        ) -> Quote:
            made = super().quote(key, extra_data, selection)
            self.pcr_extend(16, "sha256", b"\x01" * 32)
            return made

    racing = Racing(tpm._transport)

    with pytest.raises(TpmUnreachableError):
        tpm_evidence(racing, NONCE, [16])
    assert tpm_evidence(racing, NONCE, [0])


def test_waiting_in_line_ends_in_time(path: Path) -> None:
    with contextlib.ExitStack() as others:

        def crowd() -> None:
            for _ in range(10):
                others.enter_context(open_tpm(path, within_s=0.1))

        with pytest.raises(TpmUnreachableError):
            crowd()
