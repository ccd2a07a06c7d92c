"""Streams from the command line: nothing lost or doubled over a cut, and an end."""

import asyncio
import json
import signal
import time

import pytest

from tests.cli.conftest import Mcpctl, Spawn
from tests.cli.host import (
    Cut,
    Hold,
    Host,
    frame,
    log_event,
    status_event,
    trust_event,
)

TRUST = "/api/trust/registry/stream"
RUNS = "/api/trust/remediation/stream"
SOON = "retry: 10\n\n"


def lines(out: str) -> list[object]:
    return [json.loads(line) for line in out.splitlines()]


async def test_a_line_is_the_data_of_one_event(host: Host, mcpctl: Mcpctl) -> None:
    sent = [
        log_event(1, "one"),
        log_event(2, "two"),
        status_event("completed", "approved"),
    ]
    frames = [frame(f"p{n}", "remediation", data) for n, data in enumerate(sent)]
    host.streams(RUNS, [SOON, *frames, Hold()])

    done = await mcpctl("remediation", "watch", "--json", "--max-events", "3")

    assert done.code == 0
    assert lines(done.out) == sent


async def test_a_cut_stream_is_resumed_after_the_last_complete_event(
    host: Host, mcpctl: Mcpctl
) -> None:
    half = frame("c", "trust", trust_event(version=7))[:-1]
    host.streams(
        TRUST,
        [SOON, frame("a", "trust", trust_event(version=5)), Cut()],
        [SOON, frame("b", "trust", trust_event(version=6)), half, Cut()],
        [SOON, frame("c", "trust", trust_event(version=7)), Hold()],
    )

    done = await mcpctl("trust", "watch", "--json", "--max-events", "3")

    assert [trust_event(version=v) for v in (5, 6, 7)] == lines(done.out)
    ids = [asked.headers.get("Last-Event-ID") for asked in host.connections(TRUST)]
    assert ids == [None, "a", "b"]
    assert done.err.count("not live") == 2
    assert done.err.count("connected again") == 2


async def test_a_host_that_restarts_is_waited_for(host: Host, mcpctl: Mcpctl) -> None:
    cut = asyncio.Event()
    first = frame("a", "trust", trust_event(version=5))
    host.streams(TRUST, [SOON, first, cut, Cut()])
    watching = asyncio.create_task(
        mcpctl("trust", "watch", "--json", "--max-events", "2")
    )
    while not host.asked:
        await asyncio.sleep(0.01)

    host.scripts.pop(TRUST)
    host.refuses("GET", TRUST, 503, "unavailable")
    cut.set()
    while len(host.asked) < 3:
        await asyncio.sleep(0.01)
    host.streams(TRUST, [frame("b", "trust", trust_event(version=6)), Hold()])
    done = await watching

    assert lines(done.out) == [trust_event(version=5), trust_event(version=6)]
    assert host.asked[-1].headers["Last-Event-ID"] == "a"


@pytest.mark.parametrize("flag", ["--last-event-id", "--since"])
async def test_a_position_can_be_given(host: Host, mcpctl: Mcpctl, flag: str) -> None:
    host.streams(TRUST, [frame("b", "trust", trust_event()), Hold()])

    await mcpctl("trust", "watch", flag, "a", "--max-events", "1")

    assert host.last("GET", TRUST).headers["Last-Event-ID"] == "a"


async def test_ids_can_be_asked_for(host: Host, mcpctl: Mcpctl) -> None:
    host.streams(TRUST, [frame("b", "trust", trust_event()), Hold()])

    done = await mcpctl("trust", "watch", "--json", "--ids", "--max-events", "1")

    assert lines(done.out) == [trust_event() | {"last_event_id": "b"}]


async def test_filters_go_to_the_host(host: Host, mcpctl: Mcpctl) -> None:
    host.streams(TRUST, [frame("b", "trust", trust_event()), Hold()])

    await mcpctl(
        *("trust", "watch", "--server-id", "3", "--lifecycle", "quarantined"),
        *("--status", "untrusted", "--fresh", "--snapshot", "--include-provenance"),
        *("--max-events", "1"),
    )

    assert host.last("GET", TRUST).query == {
        "server_id": "3",
        "lifecycle_state": "quarantined",
        "attestation_status": "untrusted",
        "stale": "false",
        "snapshot": "true",
        "include": "provenance",
    }


async def test_the_filters_of_runs_go_to_the_host(host: Host, mcpctl: Mcpctl) -> None:
    host.streams(RUNS, [frame("b", "remediation", log_event(1, "x")), Hold()])

    await mcpctl(
        *("remediation", "watch", "--run-id", "42", "--instance-id", "7"),
        *("--status", "running", "--max-events", "1"),
    )

    query = {"run_id": "42", "instance_id": "7", "status": "running"}
    assert host.last("GET", RUNS).query == query


async def test_for_ends_a_quiet_watch_well(host: Host, mcpctl: Mcpctl) -> None:
    host.streams(TRUST, [": beat\n\n", Hold()])
    begin = time.monotonic()

    done = await mcpctl("trust", "watch", "--json", "--for", "0.3")

    assert (done.code, done.out) == (0, "")
    assert 0.25 < time.monotonic() - begin < 20


async def test_reset_and_lagged_are_told_and_bookmarks_are_not(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.streams(
        TRUST,
        [
            frame("a", "bookmark", {}),
            frame("b", "reset", {"reason": "pruned"}),
            frame("c", "lagged", {}),
            frame("d", "trust", trust_event()),
            Hold(),
        ],
    )

    done = await mcpctl("trust", "watch", "--json", "--max-events", "1")

    assert lines(done.out) == [
        {"stream": "reset", "reason": "pruned"},
        {"stream": "lagged"},
        trust_event(),
    ]


async def test_people_read_the_move_the_status_and_the_reason(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.streams(TRUST, [frame("b", "trust", trust_event()), Hold()])

    done = await mcpctl("trust", "watch", "--max-events", "1")

    for text in (
        "restored → quarantined",
        "untrusted",
        "instance 7",
        "(verdict)",
        "v5",
    ):
        assert text in done.out


async def test_people_read_the_governance_around_a_status(
    host: Host, mcpctl: Mcpctl
) -> None:
    gate = {"accelerator_id": "gpu-0", "hooks": ["veto"], "reasons": ["firmware"]}
    data = status_event(
        "pending",
        "pending",
        manifest_tags=["chaos::tenant-alpha"],
        policy_feedback=["needs review"],
        policy_gate={"remediation_hooks": ["hold"], "accelerator_gates": [gate]},
        accelerators=[
            {
                "accelerator_id": "gpu-0",
                "accelerator_type": "h100",
                "posture": "degraded",
            }
        ],
    )
    host.streams(RUNS, [frame("b", "remediation", data), Hold()])

    done = await mcpctl("remediation", "watch", "--max-events", "1")

    for text in (
        *("run 42", "tags: chaos::tenant-alpha", "policy feedback: needs review"),
        *("gate: hold", "gate: accelerator gpu-0: veto because firmware"),
        "accelerator gpu-0: h100 degraded",
    ):
        assert text in done.out


async def test_s16_a_log_line_is_escaped(host: Host, mcpctl: Mcpctl) -> None:
    data = log_event(1, "\x1b]52;c;x\x07 ok\rno")
    host.streams(RUNS, [frame("b", "remediation", data), Hold()])

    done = await mcpctl("remediation", "watch", "--max-events", "1")

    assert r"\x1b]52;c;x\x07 ok\rno" in done.out


async def test_a_stream_that_is_refused_is_not_tried_again(
    host: Host, mcpctl: Mcpctl
) -> None:
    host.refuses("GET", TRUST, 403, "forbidden")

    done = await mcpctl("trust", "watch")

    assert done.code == 4
    assert len(host.asked) == 1


async def test_a_token_that_ends_in_mid_stream_ends_the_watch(
    host: Host, mcpctl: Mcpctl
) -> None:
    cut = asyncio.Event()
    host.streams(TRUST, [SOON, cut, Cut()])
    watching = asyncio.create_task(mcpctl("trust", "watch"))
    while not host.asked:
        await asyncio.sleep(0.01)
    host.scripts.pop(TRUST)
    host.refuses("GET", TRUST, 401, "unauthenticated")
    cut.set()

    done = await watching

    assert done.code == 4


async def test_a_host_never_reached_is_exit_code_3(mcpctl: Mcpctl) -> None:
    done = await mcpctl("trust", "watch", url="http://127.0.0.1:1")

    assert done.code == 3


@pytest.mark.slow
async def test_each_line_is_flushed_and_ctrl_c_ends_it_well(
    host: Host, spawn: Spawn
) -> None:
    host.streams(TRUST, [frame("a", "trust", trust_event()), Hold()])
    process = await spawn("trust", "watch", "--json")
    assert process.stdout is not None

    line = await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()

    assert json.loads(line) == trust_event()
    assert (process.returncode, out, err) == (0, b"", b"")
