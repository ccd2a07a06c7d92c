"""What is done to domains over one connection; every function here blocks.

A connection and a domain are libvirt-python's objects, which have no types. Errors
are libvirt's own, but for the refusals that only we can make.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final
from xml.etree.ElementTree import Element

from trustfabric.domain.attestation.launch import Launch
from trustfabric.domain.vms import PowerState, VmSpec
from trustfabric.drivers import libvirt_errors as codes
from trustfabric.drivers import libvirt_volumes as volumes
from trustfabric.drivers.launch_digest import derive
from trustfabric.drivers.libvirt_events import power_state
from trustfabric.drivers.libvirt_readback import differences
from trustfabric.drivers.libvirt_xml import (
    NAMESPACE,
    Tag,
    own_volumes,
    parse,
    render,
    tag_in,
    tag_of,
)
from trustfabric.drivers.seed_iso import seed_iso
from trustfabric.errors import (
    AlreadyRunningError,
    ConflictError,
    InvalidError,
    NotFoundError,
)

_DEFINE_VALIDATE: Final = 1
_XML_INACTIVE: Final = 2
_METADATA_ELEMENT: Final = 2
_START_PAUSED: Final = 1
_STATS_STATE: Final = 1
_UNDEFINE_ALL: Final = 1 | 2 | 4 | 16 | 32
"""Managed save, snapshots, NVRAM, checkpoints, TPM state."""
_GONE: Final = frozenset({codes.NO_DOMAIN})
_OFF: Final = frozenset({codes.NO_DOMAIN, codes.OPERATION_INVALID})


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

    power: Mapping[str, PowerState]
    ours: Mapping[str, str]
    """UUID to name."""
    strangers: AbstractSet[str]
    """UUIDs that needn't be asked about again."""


def ensure_volumes(host: Host, conn: Any, spec: VmSpec) -> None:
    """Make its disk unless it is there, and its seed anew unless it is in use."""
    if spec.volume.is_made:
        volumes.ensure(host.error, conn, spec.volume)
    if spec.seed is not None and not active(host, conn, spec.name):
        image = seed_iso(spec.seed.files(spec.name))
        volumes.upload(host.error, conn, spec.seed_volume, image)


def define(host: Host, conn: Any, wanted: Element) -> bool:
    """Define `wanted` and read it back; tell whether it was there as it should be."""
    tag, flags = tag_in(wanted), _DEFINE_VALIDATE if host.validates else 0
    before = _mine_or_nobodys(host, conn, wanted)
    if before is not None and _tag(host, before) == tag and not _lost(before, wanted):
        return True
    try:
        domain = conn.defineXMLFlags(render(wanted), flags)
    except host.error as error:
        if _code(error) != codes.OPERATION_FAILED:
            raise
        if _mine_or_nobodys(host, conn, wanted) is None:  # not a name taken since
            raise
        domain = conn.defineXMLFlags(render(wanted), flags)
    lost = _lost(domain, wanted)
    if lost:
        remove(host, conn, domain.name())
        raise _downgraded(domain.name(), lost)
    return False


def launch(host: Host, conn: Any, name: str, *, here: bool) -> Launch | None:
    """Derive what its guest must report, from the domain as it was made."""
    return derive(parse(require(host, conn, name).XMLDesc(_XML_INACTIVE)), here=here)


def start(
    host: Host,
    conn: Any,
    name: str,
    wanted: Element | None,
    before_resume: Callable[[Any], None],
) -> None:
    """Boot, comparing what will run with `wanted` before its first instruction."""
    domain = require(host, conn, name)
    if _power(domain) is PowerState.PAUSED:
        _verify(host, domain, wanted)
        domain.resume()
        return
    if domain.isActive():
        raise AlreadyRunningError(f"{name} runs already")
    asked = wanted if wanted is not None else parse(domain.XMLDesc(_XML_INACTIVE))
    try:
        domain.createWithFlags(_START_PAUSED if host.starts_paused else 0)
    except host.error as error:
        if domain.isActive():
            raise AlreadyRunningError(f"{name} was started by another") from error
        raise
    _verify(host, domain, asked)
    if host.starts_paused:
        before_resume(domain)
        domain.resume()


def shut_down(host: Host, conn: Any, name: str) -> bool:
    """Ask the guest to stop; tell whether there is anything to wait for."""
    domain = require(host, conn, name)
    match _power(domain):
        case PowerState.PAUSED:
            return False
        case PowerState.RUNNING | PowerState.STOPPING:
            return _unless(host, _OFF, domain.shutdown)
        case _:
            return False


def destroy(host: Host, conn: Any, name: str) -> None:
    domain = require(host, conn, name)
    if domain.isActive():
        _unless(host, _OFF, domain.destroy)


def pause(host: Host, conn: Any, name: str) -> None:
    domain = require(host, conn, name)
    if _power(domain) is not PowerState.PAUSED:
        _require_active(domain, name)
        domain.suspend()


def resume(host: Host, conn: Any, name: str) -> None:
    domain = require(host, conn, name)
    if _power(domain) is PowerState.PAUSED:
        domain.resume()
    else:
        _require_active(domain, name)


def remove(host: Host, conn: Any, name: str) -> None:
    """Switch off, delete its own disk, undefine; what isn't ours is left alone."""
    domain = find_ours(host, conn, name)
    if domain is None:
        return
    if domain.isActive():
        _unless(host, _OFF, domain.destroy)
    if host.keeps_state:
        # First: without its domain nobody would know of them.
        for volume in own_volumes(parse(domain.XMLDesc(_XML_INACTIVE))):
            volumes.remove(host.error, conn, volume)
    flags = _UNDEFINE_ALL if host.keeps_state else 0
    _unless(host, _GONE, lambda: domain.undefineFlags(flags))


def active(host: Host, conn: Any, name: str) -> bool:
    domain = find_ours(host, conn, name)
    return domain is not None and bool(domain.isActive())


def power(host: Host, conn: Any, name: str) -> PowerState | None:
    """Return what one domain of ours does; None when there is none."""
    domain = find_ours(host, conn, name)
    return None if domain is None else _power(domain)


def snapshot(
    host: Host, conn: Any, known: Mapping[str, str], strangers: AbstractSet[str]
) -> Snapshot:
    """Return every domain of ours; those not in `known` are asked whose they are."""
    power, ours, others = {}, {}, set()
    for domain, stats in conn.getAllDomainStats(_STATS_STATE, 0):
        uuid = domain.UUIDString()
        if uuid not in known and (uuid in strangers or not _is_ours(host, domain)):
            others.add(uuid)
            continue
        name = domain.name()
        ours[uuid] = name
        power[name] = power_state(stats["state.state"], stats["state.reason"])
    return Snapshot(power, ours, others)


def find_ours(host: Host, conn: Any, name: str) -> Any | None:
    """Return our domain of that name, None when there is none."""
    domain = _find(host, lambda: conn.lookupByName(name))
    return domain if domain is not None and _is_ours(host, domain) else None


def require(host: Host, conn: Any, name: str) -> Any:
    """Return our domain of that name or raise NotFoundError."""
    domain = find_ours(host, conn, name)
    if domain is None:
        raise NotFoundError(f"no domain of ours is named {name}")
    return domain


def _mine_or_nobodys(host: Host, conn: Any, wanted: Element) -> Any | None:
    """Return our own domain of that UUID; refuse a stranger's name or UUID."""
    name, uuid = wanted.findtext("name", ""), wanted.findtext("uuid", "")
    by_uuid = _find(host, lambda: conn.lookupByUUIDString(uuid))
    by_name = _find(host, lambda: conn.lookupByName(name))
    for other in (by_uuid, by_name):
        if other is None:
            continue
        mine = other.UUIDString() == uuid and other.name() == name
        if not mine or not _is_ours(host, other):
            raise ConflictError(
                f"{name}: another's domain has this name or UUID",
                other_uuid=other.UUIDString(),
                other_name=other.name(),
            )
    return by_uuid


def _find(host: Host, look_up: Callable[[], Any]) -> Any | None:
    try:
        return look_up()
    except host.error as error:
        if _code(error) in _GONE:
            return None
        raise


def _is_ours(host: Host, domain: Any) -> bool:
    tag = _tag(host, domain)
    return tag is not None and tag.runtime == host.runtime


def _tag(host: Host, domain: Any) -> Tag | None:
    try:
        return tag_of(domain.metadata(_METADATA_ELEMENT, NAMESPACE, 0))
    except host.error as error:
        if _code(error) in {codes.NO_DOMAIN, codes.NO_DOMAIN_METADATA}:
            return None
        raise


def _lost(domain: Any, wanted: Element) -> tuple[str, ...]:
    return differences(wanted, parse(domain.XMLDesc(_XML_INACTIVE)))


def _verify(host: Host, domain: Any, wanted: Element | None) -> None:
    """Destroy what runs otherwise than asked, before it does."""
    if wanted is None:
        wanted = parse(domain.XMLDesc(_XML_INACTIVE))
    lost = differences(wanted, parse(domain.XMLDesc(0)))
    if lost:
        _unless(host, _OFF, domain.destroy)
        raise _downgraded(domain.name(), lost)


def _downgraded(name: str, lost: tuple[str, ...]) -> InvalidError:
    return InvalidError(
        f"{name}: the hypervisor made less of it than asked: {', '.join(lost)}",
        downgraded=list(lost),
    )


def _require_active(domain: Any, name: str) -> None:
    if not domain.isActive():
        raise ConflictError(f"{name} is off")


def _power(domain: Any) -> PowerState:
    state, reason = domain.state()
    return power_state(state, reason)


def _unless(host: Host, fine: AbstractSet[int], act: Callable[[], object]) -> bool:
    """Do it; False when it failed with a code that says it needn't be done."""
    try:
        act()
    except host.error as error:
        if _code(error) in fine:
            return False
        raise
    return True


def _code(error: Any) -> int:
    return int(error.get_error_code())
