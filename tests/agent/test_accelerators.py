"""Evidence of accelerators, from a program of the operator's: it may do anything."""

import json
import os
from pathlib import Path

import pytest

from trustfabric.agent import accelerators
from trustfabric.agent.answers import Sources, answer
from trustfabric.agent.serve import reply_to
from trustfabric.agent.transport import UnansweredError
from trustfabric.domain.evidence.model import EvidenceKind

GPU = "0000:65:00.0"
NONCE = bytes(range(32))


def program(folder: Path, *lines: str) -> Path:
    path = folder / "ask-gpu"
    path.write_text("\n".join(("#!/bin/sh", *lines, "")), "ascii")
    path.chmod(0o700)
    return path


def test_what_the_program_prints_is_the_evidence(tmp_path: Path) -> None:
    asked = program(tmp_path, 'echo "{\\"$1\\": \\"$2\\"}"')

    found = answer(EvidenceKind.NVIDIA_GPU, NONCE, Sources(accelerators=asked), GPU)

    assert json.loads(found) == {GPU: NONCE.hex()}


def test_an_answer_longer_than_a_pipe_comes_whole(tmp_path: Path) -> None:
    asked = program(tmp_path, "head -c 50000 /dev/zero | tr '\\0' x")

    assert accelerators.ask(asked, GPU, NONCE, 10.0) == b"x" * 50_000


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (("echo no such device >&2", "exit 3"), "ended with 3: no such device"),
        (("exec yes",), "an answer without an end"),
        (("exec yes >&2",), "an answer without an end"),
        (("sleep 600",), "no answer in time"),
        (("sleep 600 >&- 2>&-",), "no answer in time"),
    ],
)
def test_a_program_that_gives_no_answer_is_a_refusal_in_time(
    tmp_path: Path, lines: tuple[str, ...], why: str
) -> None:
    asked = program(tmp_path, *lines)

    with pytest.raises(UnansweredError, match=why):
        accelerators.ask(asked, GPU, NONCE, 0.5 if "sleep" in lines[0] else 10.0)


def test_what_the_program_started_ends_with_it(tmp_path: Path) -> None:
    left = tmp_path / "pid"
    asked = program(tmp_path, f"sleep 600 & echo $! > {left}", "wait")

    with pytest.raises(UnansweredError):
        accelerators.ask(asked, GPU, NONCE, 0.5)

    assert _is_over(int(left.read_text("ascii")))


def _is_over(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2]
    except OSError:
        return True
    return state.split()[0] == "Z"


@pytest.mark.parametrize("path", ["/no/such/program", os.devnull])
def test_a_program_that_can_t_be_run_is_a_refusal(path: str) -> None:
    with pytest.raises(UnansweredError, match=path):
        accelerators.ask(Path(path), GPU, NONCE, 1.0)


def test_without_a_program_accelerators_are_not_asked() -> None:
    with pytest.raises(UnansweredError, match="--accelerators"):
        answer(EvidenceKind.NVIDIA_GPU, NONCE, Sources(), GPU)


def test_the_host_asks_for_one_by_its_id(tmp_path: Path) -> None:
    asked = program(tmp_path, 'echo "$1"')
    question = {
        "extra_data": NONCE.hex(),
        "kind": "nvidia-gpu",
        "accelerator": GPU,
    }

    said = json.loads(
        reply_to(json.dumps(question).encode(), Sources(accelerators=asked))
    )

    assert said == {"extra_data": NONCE.hex(), "evidence": GPU}


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    asked = program(tmp_path, "printf '\\377'")
    question = {"extra_data": NONCE.hex(), "accelerator": GPU}

    said = json.loads(
        reply_to(json.dumps(question).encode(), Sources(accelerators=asked))
    )

    assert said["refused"] == "the evidence is no document"
