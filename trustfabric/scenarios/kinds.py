"""What each kind of scenario does: one function a kind, and the table of them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trustfabric.domain.failures import FailureReason
from trustfabric.domain.runs import RunStatus
from trustfabric.domain.trust import Lifecycle, Tag
from trustfabric.errors import UnavailableError
from trustfabric.scenarios.client import Person, RefusedError
from trustfabric.scenarios.faults import (
    ExecutorOutage,
    Killed,
    came_back,
    kill_actor,
)
from trustfabric.scenarios.model import Kind, Phase, Scenario
from trustfabric.scenarios.steps import REGISTRY, RUNS, SERVERS, FailedError, Story
from trustfabric.scenarios.storm import storm
from trustfabric.scenarios.tenants import (
    IMPATIENT_PLAYBOOK,
    ORDERED_PLAYBOOK,
    Tenant,
    World,
)

RACERS = 8
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the matrix: a scenario for a tenant."""

    scenario: Scenario
    tenant: Tenant
    world: World
    outage: ExecutorOutage

    def story(self) -> Story:
        name = f"{self.scenario.name}-{self.tenant.name}"
        return Story(self.world, self.tenant, name)

    async def order(self, story: Story, playbook: str = ORDERED_PLAYBOOK) -> None:
        """Enqueue a run that carries the scenario's metadata and tag."""
        metadata = {
            **self.scenario.metadata,
            "scenario": self.scenario.name,
            "tag": self.scenario.tag_for(self.tenant.name),
        }
        await story.order(playbook, metadata)


async def tenant_isolation(case: Case) -> Story:
    """Live the story; meanwhile no other tenant gets at any part of it."""
    story = case.story()
    await story.launch()
    await story.distrust()
    await story.stage()
    await _gate_refuses(story, "trust:lifecycle:remediating")
    for other in case.world.others(case.tenant):
        await _kept_out(story, other.operator)
    await story.approve()
    await story.execute()
    await story.verify()
    await case.order(story)
    await story.approve()
    await story.execute()
    await story.verify()
    _own_tags_only(case)
    return story


async def concurrent_approvals(case: Case) -> Story:
    """Many approve the same version at once: one does, and the run runs once."""
    story = case.story()
    await story.launch()
    await case.order(story)
    run = await story.run()
    path = f"{RUNS}/{story.run_id}/approval"
    body = {"new_state": "approved", "expected_version": run["version"]}
    await _refused("self-approval", case.tenant.operator.post(path, body))
    answers = await asyncio.gather(
        *(case.world.admin.once(path, body) for _ in range(RACERS)),
        return_exceptions=True,
    )
    _one_won(answers)
    await story.approve()  # where a fault took all of the answers
    stale = {"new_state": "rejected", "expected_version": run["version"]}
    await _refused("version-conflict", case.world.admin.post(path, stale))
    await story.execute()
    await story.verify()
    _approved_once(story)
    return story


async def executor_outage_resumption(case: Case) -> Story:
    """No program can start: the run fails by name, and succeeds when it is over."""
    story = case.story()
    await story.launch()
    async with case.outage.lasting():
        await case.order(story, IMPATIENT_PLAYBOOK)
        await story.approve()
        ended = await story.ended()
        await _failed_by_name(story, ended)
    try:
        await case.tenant.operator.post(f"{RUNS}/{story.run_id}/retry")
    except RefusedError as refused:
        if refused.slug != "run-active":  # the runtime staged one by itself first
            raise
    story.since = len(case.tenant.trust)
    await story.stage()
    await story.approve()
    await story.execute()
    await story.verify()
    waiting = await case.tenant.operator.get(
        RUNS, runtime_vm_instance_id=story.instance_id, status=RunStatus.PENDING
    )
    if waiting:
        raise FailedError(f"still queued: {[run['id'] for run in waiting]}")
    return story


async def actor_kill(case: Case) -> Story:
    """Live the story; kill an actor in the middle of a phase."""
    experiment = case.scenario.experiment
    assert experiment is not None
    killed: list[Killed] = []

    async def strike(story: Story, phase: Phase) -> None:
        if phase is experiment.action.during and not killed:
            pattern = experiment.action.kill.format(
                instance=story.instance_id, run=story.run_id
            )
            killed.append(await kill_actor(case.world.admin, pattern))

    story = case.story()
    story.at = strike
    await story.play()
    if not killed:
        raise FailedError(f"phase {experiment.action.during} never began")
    await came_back(case.world.admin, killed[0], experiment.recovery_seconds)
    _in_time(story, killed[0].at, experiment.recovery_seconds)
    return story


async def process_kill(case: Case) -> Story:
    """Live the story; `kill -9` the runtime in the middle of a phase."""
    experiment = case.scenario.experiment
    assert experiment is not None
    struck: list[float] = []

    async def strike(_: Story, phase: Phase) -> None:
        if phase is experiment.action.during and not struck:
            await case.world.runtime.kill_and_restart()
            struck.append(asyncio.get_running_loop().time())

    story = case.story()
    story.at = strike
    await story.play()
    if not struck:
        raise FailedError(f"phase {experiment.action.during} never began")
    _in_time(story, struck[0], experiment.recovery_seconds)
    return story


async def a_storm(case: Case) -> Story:
    """Most of a fleet falls at once; automation stands back until it is released."""
    name = f"{case.scenario.name}-{case.tenant.name}"
    return await storm(case.world, case.tenant, name)


KINDS: Mapping[Kind, Callable[[Case], Awaitable[Story]]] = {
    Kind.TENANT_ISOLATION: tenant_isolation,
    Kind.CONCURRENT_APPROVALS: concurrent_approvals,
    Kind.EXECUTOR_OUTAGE_RESUMPTION: executor_outage_resumption,
    Kind.ACTOR_KILL: actor_kill,
    Kind.PROCESS_KILL: process_kill,
    Kind.STORM: a_storm,
}


async def _gate_refuses(story: Story, note: str) -> None:
    """Check that a launch of a distrusted VM is refused, and says why."""
    path = f"{SERVERS}/{story.server_id}/redeploy"
    refusal = await _refused("placement-blocked", story.tenant.operator.post(path))
    if note not in refusal.problem.get("notes", []):
        raise FailedError(f"the gate's notes lack {note}: {refusal.problem}")


async def _kept_out(story: Story, stranger: Person) -> None:
    """Check that a stranger finds nothing there, and changes nothing."""
    before = await story.run()
    run, server = f"{RUNS}/{story.run_id}", f"{SERVERS}/{story.server_id}"
    registry = f"{REGISTRY}/{story.instance_id}"
    approval = {"new_state": "approved", "expected_version": before["version"]}
    order = {"runtime_vm_instance_id": story.instance_id, "playbook": ORDERED_PLAYBOOK}
    attempts: Sequence[Awaitable[Any]] = (
        *(stranger.get(path) for path in (run, server, registry)),
        *(stranger.get(f"{run}/{part}") for part in ("logs", "artifacts")),
        stranger.get(f"{registry}/history"),
        stranger.get(f"{server}/vm"),
        stranger.post(f"{run}/approval", approval),
        stranger.post(f"{run}/cancel"),
        stranger.post(f"{server}/stop"),
        stranger.post(f"{server}/vm/attest"),
        stranger.post(RUNS, order),
    )
    for attempt in attempts:
        await _refused("not-found", attempt)
    if await story.run() != before:
        raise FailedError(f"run {story.run_id} was changed by a stranger")


def _own_tags_only(case: Case) -> None:
    """Check that the ordered run was told under its tag, and no tag is another's."""
    tags = {
        tag for event in case.tenant.runs.events for tag in event.data["manifest_tags"]
    }
    if (own := case.scenario.tag_for(case.tenant.name)) not in tags:
        raise FailedError(f"the stream lacks the tag {own}")
    for tag in tags:
        if "::" in tag and not tag.endswith(f"::{case.tenant.name}"):
            raise FailedError(f"the stream tells another tenant's tag {tag}")


def _approved_once(story: Story) -> None:
    """Check that the stream told one approval, and nothing before it ran."""
    told = [
        event.data["event"]
        for event in story.tenant.runs.events
        if event.data["run_id"] == story.run_id
        and event.data["event"]["event"] == "status"
    ]
    states = [one["approval_state"] for one in told]
    if states != sorted(states, key=["pending", "approved"].index):
        raise FailedError(f"run {story.run_id} was told as {states}")
    approvals = [one for one in told if one["message"].startswith("approved by")]
    if len(approvals) != 1:
        raise FailedError(f"run {story.run_id} was approved {len(approvals)} times")


def _one_won(answers: Sequence[object]) -> None:
    """Check that one won and the others were told why not, as far as they heard."""
    unheard = [answer for answer in answers if isinstance(answer, UnavailableError)]
    lost = [answer for answer in answers if isinstance(answer, RefusedError)]
    won = len(answers) - len(lost) - len(unheard)
    for answer in lost:
        if answer.slug != "version-conflict":
            raise FailedError(f"a lost race answers: {answer}")
    if won > 1 or (won == 0 and not unheard):
        raise FailedError(f"{won} of {len(answers)} approvals won")


async def _failed_by_name(story: Story, ended: Mapping[str, Any]) -> None:
    """Check that the run, the registry and the gate name the outage."""
    reason = FailureReason.EXECUTOR_UNAVAILABLE
    if (ended["status"], ended["failure_reason"]) != (RunStatus.FAILED, reason):
        raise FailedError(f"run {story.run_id} during the outage: {ended}")
    operator = story.tenant.operator
    row = await operator.get(f"{REGISTRY}/{story.instance_id}")
    found = (row["lifecycle_state"], row["remediation_state"])
    if found != (Lifecycle.QUARANTINED, Tag.EXECUTOR_UNAVAILABLE):
        raise FailedError(f"the registry says {found}")
    gate = await operator.get(f"{SERVERS}/{story.server_id}/placement")
    note = f"policy_hook:remediation_gate=failure:{reason}:transient"
    if gate["allowed"] or note not in gate["notes"]:
        raise FailedError(f"the gate's notes lack {note}: {gate}")


async def _refused(slug: str, attempt: Awaitable[object]) -> RefusedError:
    """Expect a refusal of this kind."""
    try:
        answer = await attempt
    except RefusedError as error:
        if error.slug != slug:
            raise FailedError(f"refused, but not as {slug}: {error}") from error
        return error
    raise FailedError(f"not refused as {slug}: {answer}")


def _in_time(story: Story, struck_at: float, within_s: float) -> None:
    """Check that the phase that was struck came to its good end within the bound."""
    for phase, at in story.milestones:
        if at >= struck_at:
            if at - struck_at > within_s:
                took = at - struck_at
                raise FailedError(
                    f"{phase} took {took:.1f} s, the bound is {within_s:g} s"
                )
            return
