"""What must hold after every scenario, whatever was done to the product.

Each check returns what is wrong, in words. They read what any client may read, and
compare it with what the tenant's own streams told.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from trustfabric.domain.runs import RunStatus
from trustfabric.domain.trust import AttestationStatus, Lifecycle
from trustfabric.scenarios.model import SteadyState
from trustfabric.scenarios.steps import REGISTRY, RUNS, SERVERS
from trustfabric.scenarios.tenants import Tenant

SETTLE_S = 20.0
_LOOK_S = 0.25
_HISTORY_PAGE = 200

Row = dict[str, Any]


async def violations(
    tenant: Tenant, server_id: int, instance_id: int, steady: SteadyState
) -> list[str]:
    """Return what does not hold; what is still on its way gets time to arrive."""
    until = time.monotonic() + SETTLE_S
    while True:
        found = await _look(tenant, server_id, instance_id, steady)
        if not found or time.monotonic() >= until:
            return found
        await asyncio.sleep(_LOOK_S)


async def _look(
    tenant: Tenant, server_id: int, instance_id: int, steady: SteadyState
) -> list[str]:
    operator = tenant.operator
    history = await read_history(tenant, instance_id)
    registry = await operator.get(f"{REGISTRY}/{instance_id}")
    vm = await operator.get(f"{SERVERS}/{server_id}/vm")
    runs = await operator.get(RUNS, runtime_vm_instance_id=instance_id)
    found = [
        *steady_state(registry, steady),
        *versions(history, registry),
        *delivery(history, [event.data for event in tenant.trust.events]),
        *grounds_of_trust(history, _instance(vm, instance_id)),
        *runs_of(history, runs),
        *await _foreign(tenant),
    ]
    for run in runs:
        log = await operator.get(f"{RUNS}/{run['id']}/logs")
        found += logs(run["id"], log, [event.data for event in tenant.runs.events])
    return found


async def read_history(tenant: Tenant, instance_id: int) -> list[Row]:
    """Return the whole history of an instance, oldest first."""
    path, rows = f"{REGISTRY}/{instance_id}/history", []
    params: dict[str, int] = {"limit": _HISTORY_PAGE}
    while True:
        page = (await tenant.operator.get(path, **params))["events"]
        rows += page
        if len(page) < _HISTORY_PAGE:
            return rows[::-1]
        params["cursor"] = page[-1]["history_id"]


def steady_state(registry: Row, steady: SteadyState) -> Iterator[str]:
    for field, wanted in steady:
        if registry[field] != wanted:
            yield f"steady state: {field} is {registry[field]}, not {wanted}"


def versions(history: Sequence[Row], registry: Row) -> Iterator[str]:
    """Each accepted change is one version and one row."""
    numbers = [row["version"] for row in history]
    if numbers != list(range(1, len(history) + 1)):
        yield f"history: versions are {numbers}"
    if registry["version"] != len(history):
        yield f"registry: version {registry['version']}, {len(history)} history rows"
    for before, after in pairwise(history):
        if before["lifecycle_state"] != after["previous_lifecycle_state"]:
            yield f"history: version {after['version']} leaves another state"


def delivery(history: Sequence[Row], events: Sequence[Row]) -> Iterator[str]:
    """Every row is told exactly once, in order."""
    ids = {row["history_id"] for row in history}
    told = [one["history_id"] for one in events if one["history_id"] in ids]
    written = [row["history_id"] for row in history]
    if told == written:
        return
    twice = [one for one, times in Counter(told).items() if times > 1]
    never = [one for one in written if one not in told]
    order = "" if sorted(told) == told else ", out of order"
    yield f"trust stream: missed {never}, told twice {twice}{order}"


def grounds_of_trust(history: Sequence[Row], instance: Row) -> Iterator[str]:
    """Nobody is restored on evidence from before the newest boot."""
    if instance["trust_lifecycle_state"] != Lifecycle.RESTORED:
        return
    boots = [
        event["created_at"]
        for event in instance["events"]
        if event["event_type"] == "started"
    ]
    verdicts = [
        row["triggered_at"]
        for row in history
        if row["attestation_status"] == AttestationStatus.TRUSTED
        and row["attestation_id"] is not None
    ]
    if not verdicts:
        yield "restored without a trusted verdict"
    elif boots and max(boots) > max(verdicts):
        yield f"restored on a verdict of {max(verdicts)}, booted at {max(boots)}"


def runs_of(history: Sequence[Row], runs: Sequence[Row]) -> Iterator[str]:
    """One run for each quarantine, and none is left half done."""
    for run in runs:
        if run["status"] in (RunStatus.PENDING, RunStatus.RUNNING):
            yield f"run {run['id']} is still {run['status']}"
    staged = sum(str(run["requested_by"]).startswith("actor:") for run in runs)
    begun = sum(_begins_quarantine(row) for row in history)
    if staged != begun:
        yield f"{begun} quarantines staged {staged} runs"


def _begins_quarantine(row: Row) -> bool:
    return (
        row["lifecycle_state"] == Lifecycle.QUARANTINED
        and row["previous_lifecycle_state"] != Lifecycle.QUARANTINED
        and "run_id" not in (row["metadata"] or {})
    )


def logs(run_id: int, log: Sequence[Row], events: Sequence[Row]) -> Iterator[str]:
    """Every line of the log is told exactly once, in order."""
    told = [
        one["event"]["seq"]
        for one in events
        if one["run_id"] == run_id and one["event"]["event"] == "log"
    ]
    written = [line["seq"] for line in log]
    if told != written:
        yield f"run {run_id}: log lines {written}, streamed {told}"


async def _foreign(tenant: Tenant) -> list[str]:
    """Nobody sees what is another's, in a list or in a stream."""
    operator = tenant.operator
    rows = await operator.get(REGISTRY)
    runs = await operator.get(RUNS)
    servers = {row["server_id"] for row in rows}
    servers |= {event.data["server_id"] for event in tenant.trust.events}
    instances = {run["runtime_vm_instance_id"] for run in runs}
    instances |= {event.data["instance_id"] for event in tenant.runs.events}
    found = [f"sees server {one}, not its own" for one in servers - tenant.servers]
    return found + [
        f"sees a run of instance {one}, not its own"
        for one in instances - tenant.instances
    ]


def _instance(vm: Row, instance_id: int) -> Row:
    return next(one for one in vm["instances"] if one["id"] == instance_id)
