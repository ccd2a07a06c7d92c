"""A storm: many VMs of one image fall at once, and automation stands back.

It needs a runtime with the breaker's usual limits, which the matrix can't have: there
everything is quarantined on purpose.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from trustfabric.domain.holds import HoldEventKind
from trustfabric.domain.runs import RunStatus
from trustfabric.domain.trust import Tag
from trustfabric.scenarios.steps import REGISTRY, RUNS, FailedError, Story
from trustfabric.scenarios.stream import Recorder
from trustfabric.scenarios.tenants import Tenant, World

SETTINGS: Mapping[str, str] = {
    "REMEDIATION_BREAKER_MINIMUM": "4",
    "REMEDIATION_BREAKER_PERCENT": "20",
}
INCIDENTS = "/api/trust/incidents"
HOLDS = "/api/trust/holds"
RELEASE = "/api/trust/remediation/breaker/release"
IMAGE = "demo-of-friday"
BAD, GOOD = 6, 2
OPENED_S = 60.0


async def storm(world: World, tenant: Tenant, name: str) -> Story:
    """Have most of a fleet fall; one incident names their image, a person lets go."""
    fallen = [Story(world, tenant, f"{name}-{at}", image=IMAGE) for at in range(BAD)]
    well = [Story(world, tenant, f"{name}-well-{at}") for at in range(GOOD)]
    await _together([story.launch() for story in (*fallen, *well)])
    holds = Recorder(tenant.operator, f"{HOLDS}/stream")
    async with holds.running():
        await _together([story.distrust() for story in fallen])
        await holds.wait_for(
            lambda data: data["event"] == HoldEventKind.BREAKER_OPENED,
            within_s=OPENED_S,
            what="the breaker's opening",
        )
    incident = await _incident(world, len(fallen))
    _names_the_image(incident)
    await _nothing_starts(tenant, fallen)
    await world.admin.post(RELEASE, {"reason": "the image was withdrawn"})
    for story in fallen:
        await story.stage()
        await story.approve()
    await _together([_repaired(story) for story in fallen])
    await _incident(world, len(fallen))
    return fallen[0]


async def _repaired(story: Story) -> None:
    await story.execute()
    await story.verify()


async def _together(work: Sequence[Any]) -> None:
    await asyncio.gather(*work)


async def _incident(world: World, fallen: int) -> dict[str, Any]:
    """Return the one incident there is, once it counts all that fell."""
    counted = 0
    for _ in range(int(OPENED_S)):
        found = await world.admin.get(INCIDENTS)
        if len(found) != 1:
            raise FailedError(f"{len(found)} incidents instead of one: {found}")
        incident: dict[str, Any] = found[0]
        if (counted := incident["quarantined"]) == fallen:
            return incident
        await asyncio.sleep(1)
    raise FailedError(f"the incident counts {counted} of {fallen} that fell")


def _names_the_image(incident: Mapping[str, Any]) -> None:
    first = incident["common"][0]
    if (first["trait"], first["value"], first["rest"]) != ("image", IMAGE, 0):
        raise FailedError(f"the incident names not the image: {incident['common']}")


async def _nothing_starts(tenant: Tenant, fallen: Sequence[Story]) -> None:
    """Check that no run has started, and that what is held says why."""
    for story in fallen:
        await _decided(story)
        instance = story.instance_id
        found = await tenant.operator.get(RUNS, runtime_vm_instance_id=instance)
        if any(run["status"] != RunStatus.PENDING for run in found):
            raise FailedError(f"a run of {story.name} started in the storm: {found}")
        told = await tenant.operator.get(f"{REGISTRY}/{instance}/why")
        codes = [reason["code"] for reason in told["reasons"]]
        if "breaker-open" not in codes:
            raise FailedError(f"{story.name} doesn't say that it is held: {codes}")


async def _decided(story: Story) -> None:
    """Wait until it has a run from before the storm, or is held."""
    tags = {Tag.HELD, Tag.PENDING_APPROVAL}
    await story.tenant.trust.wait_for(
        lambda data: (
            data["vm_instance_id"] == story.instance_id
            and data["remediation_state"] in tags
        ),
        within_s=OPENED_S,
        what=f"{story.name} held, or staged before the storm",
        since=story.since,
    )
