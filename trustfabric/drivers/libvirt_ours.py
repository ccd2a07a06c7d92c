"""Which domains are ours, and which boot is marked on what runs of them.

A mark lives in the metadata of what runs, not in the definition: it ends with that
run, whoever ends it. Every function here blocks; a connection and a domain are
libvirt-python's objects, which have no types.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from trustfabric.domain.power import UNSEEN, Seen
from trustfabric.domain.vms import PowerState
from trustfabric.drivers import libvirt_errors as codes
from trustfabric.drivers.libvirt_events import power_state
from trustfabric.drivers.libvirt_xml import NAMESPACE, PREFIX, Tag, marked, tag_of
from trustfabric.errors import NotFoundError

_METADATA_ELEMENT: Final = 2
_AFFECT_LIVE: Final = 1
_STATS_STATE: Final = 1
_GONE: Final = frozenset({codes.NO_DOMAIN})


@dataclass(frozen=True, slots=True)
class Host:
    """What a connection's driver can do, and how we mark what is ours."""

    error: type[Exception]
    """libvirt's exception."""
    runtime: str
    validates: bool
    """Check against its schema too; 8 ms a domain, so not where nothing runs."""
    starts_paused: bool
    keeps_state: bool
    """It has firmware variables, TPM state and the like to remove."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every domain of a connection, as far as it concerns us."""

    ours: Mapping[str, "Ours"]
    """By UUID."""
    strangers: AbstractSet[str]
    """UUIDs that needn't be asked about again."""


@dataclass(frozen=True, slots=True)
class Ours:
    """One domain of ours, as it was last seen."""

    uuid: str
    name: str
    seen: Seen = UNSEEN
    run: int | None = None
    """libvirt's id of what runs, another one at each start; -1 when it is off."""


def look(host: Host, conn: Any, name: str) -> Ours | None:
    """Return one domain of ours as it is; None when there is none."""
    domain = find_ours(host, conn, name)
    if domain is None:
        return None
    one = _as_tagged(domain, power_of(domain), tag_on(host, domain))
    if one.seen.power.active and one.seen.boot is None:
        # Maybe its mark went with its run, between the two questions.
        return replace(one, seen=Seen(power_of(domain)))
    return one


def runs_unknown(known: Mapping[str, Ours]) -> dict[str, Ours]:
    """Return what is left to know when a link was down: no run tells its boot.

    A daemon that came up meanwhile may number what runs from one again.
    """
    return {uuid: replace(one, run=None) for uuid, one in known.items()}


def snapshot(
    host: Host, conn: Any, known: Mapping[str, Ours], strangers: AbstractSet[str]
) -> Snapshot:
    """Return every domain of ours.

    Asked whose they are, and which boot they are marked with, are those not in `known`
    and those that were started since, or not marked then.
    """
    ours, others = {}, set()
    for domain, stats in conn.getAllDomainStats(_STATS_STATE, 0):
        uuid = domain.UUIDString()
        before = known.get(uuid)
        if before is None and uuid in strangers:
            others.add(uuid)
            continue
        power = power_state(stats["state.state"], stats["state.reason"])
        one = _seen_again(before, domain.ID(), power)
        if one is None:
            tag = tag_on(host, domain)
            if tag is None or tag.runtime != host.runtime:
                others.add(uuid)
                continue
            one = _as_tagged(domain, power, tag)
        ours[uuid] = one
    return Snapshot(ours, others)


def _seen_again(before: Ours | None, run: int, power: PowerState) -> Ours | None:
    """Return what was known of a domain with its new power; None: it must be asked."""
    if before is None or before.run != run:
        return None
    if power.active and before.seen.boot is None:
        return None
    if before.seen.power is power:
        return before
    boot = before.seen.boot if power.active else None
    return Ours(before.uuid, before.name, Seen(power, boot), run)


def _as_tagged(domain: Any, power: PowerState, tag: Tag | None) -> Ours:
    """Return a domain; a mark that was put on another run of it says nothing.

    Such come of snapshots and of definitions that were made of what ran.
    """
    run, boot = domain.ID(), None
    if tag is not None and tag.boot is not None and power.active:
        marked_run, _, text = tag.boot.partition(":")
        boot = _boot(text) if marked_run == str(run) else None
    return Ours(domain.UUIDString(), domain.name(), Seen(power, boot), run)


def _boot(text: str) -> UUID | None:
    """Read a mark that somebody may have written over; None: it says nothing."""
    try:
        return UUID(text)
    except ValueError:
        return None


def find_ours(host: Host, conn: Any, name: str) -> Any | None:
    """Return our domain of that name, None when there is none."""
    domain = find(host, lambda: conn.lookupByName(name))
    return domain if domain is not None and is_ours(host, domain) else None


def require(host: Host, conn: Any, name: str) -> Any:
    """Return our domain of that name or raise NotFoundError."""
    domain = find_ours(host, conn, name)
    if domain is None:
        raise NotFoundError(f"no domain of ours is named {name}")
    return domain


def find(host: Host, look_up: Callable[[], Any], *, again: bool = True) -> Any | None:
    """Return what is looked up; asks `again` where libvirt's error was forgotten."""
    try:
        return look_up()
    except host.error as error:
        code = code_of(error)
        if code in _GONE:
            return None
        if code or not again:
            raise
    return find(host, look_up, again=False)


def is_ours(host: Host, domain: Any) -> bool:
    tag = tag_on(host, domain)
    return tag is not None and tag.runtime == host.runtime


def tag_on(host: Host, domain: Any) -> Tag | None:
    try:
        return tag_of(domain.metadata(_METADATA_ELEMENT, NAMESPACE, 0))
    except host.error as error:
        if code_of(error) in {codes.NO_DOMAIN, codes.NO_DOMAIN_METADATA}:
            return None
        raise


def mark(domain: Any, boot: UUID) -> None:
    """Write on what runs, not into its definition, which boot it is."""
    text = domain.metadata(_METADATA_ELEMENT, NAMESPACE, _AFFECT_LIVE)
    domain.setMetadata(
        _METADATA_ELEMENT,
        marked(text, f"{domain.ID()}:{boot}"),
        PREFIX,
        NAMESPACE,
        _AFFECT_LIVE,
    )


def power_of(domain: Any) -> PowerState:
    state, reason = domain.state()
    return power_state(state, reason)


def code_of(error: Any) -> int:
    """Return libvirt's code; 0 where Python's collector made it forget its error.

    Freeing an object of libvirt's does that, and may come between call and error.
    """
    return int(error.get_error_code() or 0)
