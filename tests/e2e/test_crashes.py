"""Killed anywhere, the story goes on: nothing lost, nothing twice, no false trust."""

import contextlib
from pathlib import Path

import pytest

from tests.e2e.story import Story, a_story
from trustfabric.errors import UnavailableError
from trustfabric.scenarios.client import RefusedError

pytestmark = [pytest.mark.slow, pytest.mark.libvirt, pytest.mark.timeout(600)]

TURNS = (
    "restored",
    "tampered",
    "challenged",
    "waiting",
    "approved",
    "started",
    "at-work",
    "vm-stopped",
    "vm-booted",
    "ended",
)
"""Where a story can be interrupted, in its order; its launch has two more places."""

LINES = {
    "at-work": "stopping",
    "vm-stopped": "stopped",
    "vm-booted": "running: a new boot",
}
"""What the playbook prints first at these turns."""

ACTORS = (
    ("restored", "fabric/evaluations"),
    ("challenged", "fabric/trust"),
    ("challenged", "fabric/attestation"),
    ("challenged", "fabric/remediation/dispatcher"),
    ("waiting", "fabric/streams/broadcaster"),
    ("waiting", "fabric/streams/listener"),
    ("approved", "fabric/remediation/dispatcher"),
    ("started", "fabric/remediation/runs/{run}"),
    ("at-work", "fabric/vms/{instance}"),
    ("at-work", "fabric/hypervisors/link"),
    ("at-work", "fabric/servers"),
    ("at-work", "fabric/api"),
    ("ended", "fabric/attestation"),
    ("ended", "fabric/remediation"),
)
"""Every actor is killed in mid-work of something that needs it."""


@pytest.mark.parametrize("turn", ["created", "launched"])
async def test_a_launch_survives_kill_9(tmp_path: Path, turn: str) -> None:
    async with a_story(tmp_path / "data") as story:
        if turn == "created":
            server = await story.alice.post("/api/servers", {"name": "other"})
            await story.runtime.kill_and_restart()
            assert await story.alice.get(f"/api/servers/{server['id']}") == server
        await story.begin()
        await story.runtime.kill_and_restart()

        await story.until("restored")
        await story.check()


async def test_the_story_goes_on_after_kill_9_at_any_turn(tmp_path: Path) -> None:
    async with a_story(tmp_path / "data") as story:
        await story.begin()
        await story.until("restored")

        for turn in TURNS:
            await _live_until(story, turn)
            await story.runtime.kill_and_restart()
            await _finish(story)

        await story.check()
        await _nothing_is_left_behind(story)


async def test_the_story_goes_on_whichever_actor_is_killed(tmp_path: Path) -> None:
    async with a_story(tmp_path / "data") as story:
        await story.begin()
        await story.until("restored")

        for turn, path in ACTORS:
            run_id = await _live_until(story, turn)
            vm = await story.vm()
            await _kill_actor(story, path.format(run=run_id, instance=vm["id"]))
            await _finish(story)

        await story.check()
        await _nothing_is_left_behind(story)
        assert story.runtime.exit_code is None


async def _live_until(story: Story, turn: str) -> int:
    """Tamper and go on to this turn of the story; return the run, 0 for none yet."""
    if turn == "restored":
        return 0
    await story.tamper()
    if turn == "tampered":
        return 0
    await story.challenge()
    if turn == "challenged":
        return 0
    run = await story.pending_run()
    run_id: int = run["id"]
    if turn == "waiting":
        return run_id
    await story.approve(run)
    if turn == "approved":
        return run_id
    wanted = {"started": "running", "ended": "completed"}.get(turn)
    await story.remediation.wait_for(
        lambda data: (
            data["run_id"] == run_id
            and (
                data["event"].get("status") == wanted
                if wanted
                else data["event"].get("message", "").startswith(LINES[turn])
            )
        ),
        within_s=60,
        what=f"run {run_id} {turn}",
    )
    return run_id


async def _kill_actor(story: Story, path: str) -> None:
    # An answer may be lost with the actor; one that just ended is not there.
    with contextlib.suppress(UnavailableError, RefusedError):
        await story.boss.once(f"/api/system/actors/{path}/kill")


async def _finish(story: Story) -> None:
    """Approve what waits for it until the VM is trusted and nothing is under way."""
    while True:
        runs = await story.alice.get("/api/trust/remediation/runs")
        active = [run for run in runs if run["status"] in ("pending", "running")]
        row = await story.row()
        if not active and row["lifecycle_state"] == "restored":
            return
        seen = len(story.trust)
        for run in active:
            if run["approval_state"] == "pending":
                with contextlib.suppress(RefusedError):
                    await story.approve(run)
        if not active and row["lifecycle_state"] == "quarantined":
            # Its TPM was reset with the runtime and showed good evidence before anybody
            # approved: that called the run off, and letting it out takes a person.
            with contextlib.suppress(RefusedError):
                await story.release()
        if (await story.row())["version"] == row["version"]:
            await story.trust.wait_for(
                lambda _: True, within_s=60, what="the story to go on", since=seen
            )


async def _nothing_is_left_behind(story: Story) -> None:
    runs = await story.alice.get("/api/trust/remediation/runs")
    assert {run["status"] for run in runs} <= {"completed", "failed", "cancelled"}
    vm = await story.vm()
    history = await story.alice.get(
        f"/api/trust/registry/{vm['id']}/history", limit=200
    )
    restorations = [
        event
        for event in history["events"]
        if event["lifecycle_state"] == "restored"
        and event["previous_lifecycle_state"] != "restored"
    ]
    assert {event["transition_reason"] for event in restorations} == {"attestation:ok"}
    seen = [
        (event.data["run_id"], event.data["event"].get("seq"), event.id)
        for event in story.remediation.events
    ]
    assert len(seen) == len(set(seen))
    assert story.remediation.resets == 0
