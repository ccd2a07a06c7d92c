"""The agent that pushes: where it sends its token, and what it sends again."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.agent.test_agent import path as tpm_path
from trustfabric.agent import push
from trustfabric.agent.main import FAILED, OK, UNREACHABLE, main
from trustfabric.domain.evidence.tpm2 import parse_document

path = tpm_path
EXTRA = bytes(range(32))
ASKED = {
    "challenge_id": 1,
    "kind": "tpm",
    "nonce": "11" * 32,
    "extra_data": EXTRA.hex(),
}


@dataclass
class Runtime:
    """Answers from lists of (status, document); keeps what it was sent."""

    gets: list[tuple[int, Any]] = field(default_factory=list)
    posts: list[tuple[int, Any]] = field(default_factory=list)
    sent: list[tuple[str, str, str | None, bytes]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    kept = Runtime()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(kept.gets)

        def do_POST(self) -> None:
            self._answer(kept.posts)

        def _answer(self, answers: list[tuple[int, Any]]) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = self.headers["Authorization"]
            kept.sent.append((self.command, self.path, token, body))
            status, document = answers.pop(0)
            raw = document if isinstance(document, bytes) else json.dumps(document)
            raw = raw if isinstance(raw, bytes) else raw.encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", kept.url + "/elsewhere")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    kept.url = f"http://127.0.0.1:{server.server_port}"
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("abc.def.ghi\n")
    return file


def push_once(runtime: Runtime, token: Path, tpm: Path | str = "/none") -> int:
    arguments = ["--tpm", str(tpm), "push", runtime.url, "--token-file", str(token)]
    return main([*arguments, "--once"])


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="needs swtpm")
def test_a_challenge_is_fetched_and_answered(
    runtime: Runtime, token: Path, path: Path
) -> None:
    runtime.gets = [(200, [ASKED])]
    runtime.posts = [(202, {})]

    assert push_once(runtime, token, path) == OK

    (_, fetched, bearer, _), (_, where, _, body) = runtime.sent
    assert fetched == f"{push.PATH}?wait={push.WAIT_S}"
    assert bearer == "Bearer abc.def.ghi"
    assert where == push.PATH
    answer = json.loads(body)
    assert answer["nonce"] == ASKED["nonce"]
    assert parse_document(base64.b64decode(answer["evidence"])).extra_data == EXTRA


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="needs swtpm")
def test_a_challenge_that_can_t_be_answered_keeps_no_other_from_it(
    runtime: Runtime, token: Path, path: Path
) -> None:
    gpu = {**ASKED, "kind": "nvidia-gpu", "accelerator_id": "0000:65:00.0"}
    runtime.gets = [(200, [gpu, ASKED]), (200, [gpu])]
    runtime.posts = [(202, {})]

    assert push_once(runtime, token, path) == OK
    assert push_once(runtime, token, path) == FAILED

    assert [each[0] for each in runtime.sent] == ["GET", "POST", "GET"]


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="needs swtpm")
def test_only_what_was_not_taken_is_sent_again(
    runtime: Runtime,
    token: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(push, "_PAUSE_S", (0.0, 0.0))
    runtime.gets = [(200, [ASKED]), (200, [ASKED])]
    runtime.posts = [(429, {}), (202, {}), (409, {"detail": "refused"})]

    assert push_once(runtime, token, path) == OK
    assert push_once(runtime, token, path) == FAILED

    assert [each[0] for each in runtime.sent] == ["GET", "POST", "POST", "GET", "POST"]
    assert runtime.sent[1] == runtime.sent[2]
    assert "409: refused" in capsys.readouterr().err


def test_without_a_challenge_nothing_is_answered(runtime: Runtime, token: Path) -> None:
    runtime.gets = [(200, [])]

    assert push_once(runtime, token) == UNREACHABLE


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (401, {"detail": "over"}),
        (302, {}),
        (500, b"\xff"),
        (200, {}),
        (200, [1]),
        (200, [{}]),
        (200, [{**ASKED, "kind": "unheard-of"}]),
        (200, [{**ASKED, "nonce": "zz"}]),
        (200, b"x" * 100_000),
    ],
)
def test_an_answer_of_another_sort_is_refused(
    runtime: Runtime, token: Path, status: int, answer: Any
) -> None:
    runtime.gets = [(status, answer)]

    assert push_once(runtime, token) == FAILED

    assert len(runtime.sent) == 1  # no redirect was followed


def test_who_is_not_there_is_unreachable(token: Path) -> None:
    assert push_once(Runtime(url="http://127.0.0.1:9"), token) == UNREACHABLE


@pytest.mark.parametrize("content", ["", "two words", "\x00", "\u00e9"])
def test_a_file_without_a_token_is_no_token(
    runtime: Runtime, token: Path, content: str
) -> None:
    token.write_text(content)

    assert push_once(runtime, token) == UNREACHABLE

    assert runtime.sent == []


@pytest.mark.parametrize(
    "url",
    [
        "runtime",
        "ftp://runtime",
        "http://runtime.example",
        "http://10.0.0.1:3000",
        "https://user:word@runtime",
        "https://runtime/?x=1",
        "https://",
    ],
)
def test_a_token_goes_nowhere_where_others_could_read_it(
    token: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["push", url, "--token-file", str(token)])

    assert ended.value.code == 2
    assert "url:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    [
        "https://runtime.example",
        "http://127.0.0.1:3000",
        "http://[::1]",
        "http://localhost",
    ],
)
def test_an_address_that_is_fine_is_taken(url: str, tmp_path: Path) -> None:
    push.Runtime(url=url, token_file=tmp_path).check()


def test_pauses_double_up_to_a_minute() -> None:
    pauses = [push._pause(failures, lambda: 0.0) for failures in range(8)]

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert push._pause(0, lambda: 1.0) == 0.75
