"""The main job, end to end, through every face of the product."""

import json
from itertools import groupby
from pathlib import Path

import pytest

from tests.e2e.story import PATIENCE_S, PLAYBOOK, a_story
from trustfabric.scenarios.client import RefusedError

pytestmark = [pytest.mark.slow, pytest.mark.libvirt, pytest.mark.timeout(180)]


async def test_a_tampered_vm_is_quarantined_remedied_and_restored(
    tmp_path: Path,
) -> None:
    async with a_story(tmp_path / "data") as story:
        await story.begin()
        restored = await story.until("restored")
        assert restored["attestation_status"] == "trusted"
        vm = await story.vm()
        assert vm["power_state"] == "running"
        assert vm["trust_provenance"]["policy"]["id"] == "demo-software-tpm"
        first_boot = vm["boot_id"]

        await story.tamper()
        await story.challenge()
        run = await story.pending_run()
        assert run["playbook"] == PLAYBOOK
        # A verdict that moves nothing is an event too: only the moves are compared.
        states = (event.data["lifecycle_state"] for event in story.trust.events)
        moves = [state for state, _ in groupby(states)]
        assert moves == ["suspect", "restored", "quarantined", "remediating"]

        with pytest.raises(RefusedError) as refusal:
            await story.alice.once(f"/api/servers/{story.server_id}/redeploy")
        assert refusal.value.slug == "placement-blocked"
        notes = refusal.value.problem["notes"]
        assert "trust:lifecycle:remediating" in notes
        assert f"remediation:awaiting-approval:{run['id']}" in notes

        stale = await story.mcpctl(
            "remediation", "runs", "approve", str(run["id"]), "--version", "99"
        )
        assert stale.code == 5, stale.err
        approved = await story.mcpctl(
            "remediation",
            *("runs", "approve", str(run["id"])),
            *("--version", str(run["version"]), "--notes", "go on", "--json"),
        )
        assert approved.code == 0, approved.err
        assert approved.json()["approval_state"] == "approved"

        await story.until("restored")
        vm = await story.vm()
        assert vm["boot_id"] != first_boot
        assert vm["attestation_status"] == "trusted"
        await story.check()

        # Its stream is another one, and may be behind that of trust.
        await story.remediation.wait_for(
            lambda data: (
                data["run_id"] == run["id"]
                and data["event"].get("status") == "completed"
            ),
            within_s=PATIENCE_S,
            what="the end of the run",
        )
        run = await story.alice.get(f"/api/trust/remediation/runs/{run['id']}")
        assert run["status"] == "completed"
        log = await story.alice.get(f"/api/trust/remediation/runs/{run['id']}/logs")
        told_lines = [
            event.data["event"]["message"]
            for event in story.remediation.events
            if event.data["event"]["event"] == "log"
        ]
        assert told_lines == [line["message"] for line in log]
        assert told_lines[-1] == "running: a new boot"
        artifacts = await story.mcpctl(
            "remediation", "runs", "artifacts", str(run["id"]), "--json"
        )
        assert artifacts.json()[0]["artifact_type"] == "execution-log"

        seen = [event.data["version"] for event in story.trust.events]
        watched = await story.mcpctl(
            *("trust", "watch", "--last-event-id", "0-0"),
            *("--max-events", str(len(seen)), "--json"),
        )
        printed = [json.loads(line)["version"] for line in watched.out.splitlines()]
        assert printed == seen
        assert len(seen) > 5
        registry = await story.mcpctl("trust", "registry", "--json")
        assert registry.json()[0]["lifecycle_state"] == "restored"


async def test_the_default_policy_refuses_a_software_tpm(tmp_path: Path) -> None:
    async with a_story(tmp_path / "data", {"LOG_FORMAT": "json"}) as story:
        await story.begin()

        row = await story.until("remediating")

        assert row["attestation_status"] == "untrusted"
        history = await story.alice.get(
            f"/api/trust/registry/{row['vm_instance_id']}/history"
        )
        reasons = [event["transition_reason"] for event in history["events"]]
        assert "attestation:policy-violation" in reasons
        assert "restored" not in [e["lifecycle_state"] for e in history["events"]]
