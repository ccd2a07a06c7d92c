"""What is done to domains over one connection; every function here blocks.

A connection and a domain are libvirt-python's objects, which have no types. Errors
are libvirt's own, but for the refusals that only we can make.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from typing import Any, Final
from uuid import UUID
from xml.etree.ElementTree import Element

from trustfabric.domain.attestation.launch import Launch
from trustfabric.domain.vms import PowerState, VmSpec, VolumeTemplate
from trustfabric.drivers import libvirt_errors as codes
from trustfabric.drivers import libvirt_volumes as volumes
from trustfabric.drivers.launch_digest import derive
from trustfabric.drivers.libvirt_ours import (
    Host,
    code_of,
    find,
    find_ours,
    is_ours,
    mark,
    power_of,
    require,
    tag_on,
)
from trustfabric.drivers.libvirt_readback import differences
from trustfabric.drivers.libvirt_xml import own_volumes, parse, render, tag_in
from trustfabric.drivers.seed_iso import seed_iso
from trustfabric.errors import (
    AlreadyRunningError,
    ConflictError,
    InvalidError,
    UnavailableError,
)

_DEFINE_VALIDATE: Final = 1
_XML_INACTIVE: Final = 2
_XML_WHOLE: Final = 1 | 2
"""Of the definition, with the passwords in it."""
_START_PAUSED: Final = 1
_UNDEFINE_ALL: Final = 1 | 2 | 4 | 16 | 32
"""Managed save, snapshots, NVRAM, checkpoints, TPM state."""
_UNDEFINE_KEEPING: Final = 8 | 64
"""Without NVRAM and TPM state."""
_GONE: Final = frozenset({codes.NO_DOMAIN})
_OFF: Final = frozenset({codes.NO_DOMAIN, codes.OPERATION_INVALID})


def define(host: Host, conn: Any, spec: VmSpec, wanted: Element) -> bool:
    """Define `wanted`, read it back, make its disks; tell whether it was there so.

    A refusal leaves all as it was, also what was there before.
    """
    before = _mine_or_nobodys(host, conn, wanted)
    if before is not None and _is_as(host, before, wanted):
        _make_volumes(host, conn, spec, before)
        return True
    definition = None if before is None else before.XMLDesc(_XML_WHOLE)
    domain = _defined(host, conn, wanted)
    try:
        _require_whole(domain, wanted)
        _make_volumes(host, conn, spec, domain)
    except BaseException:
        _undo(host, conn, domain, definition)
        raise
    return False


def launch(host: Host, conn: Any, name: str, *, here: bool) -> Launch | None:
    """Derive what its guest must report, from the domain as it was made."""
    return derive(parse(require(host, conn, name).XMLDesc(_XML_INACTIVE)), here=here)


def start(
    host: Host,
    conn: Any,
    name: str,
    wanted: Element | None,
    boot: UUID,
    before_resume: Callable[[Any], None],
) -> None:
    """Boot, comparing what will run with `wanted` before its first instruction."""
    domain = require(host, conn, name)
    asked = wanted if wanted is not None else parse(domain.XMLDesc(_XML_INACTIVE))
    if power_of(domain) is PowerState.PAUSED:
        if _lacks(domain, asked):
            # Left by a start that was cut, before somebody asked for something else.
            _unless(host, _OFF, domain.destroy)
        elif _unless(host, _OFF, partial(_go_on, domain, boot, before_resume)):
            return
    if domain.isActive():
        raise AlreadyRunningError(f"{name} runs already")
    try:
        domain.createWithFlags(_START_PAUSED if host.starts_paused else 0)
    except host.error as error:
        if domain.isActive():
            raise AlreadyRunningError(f"{name} was started by another") from error
        raise
    _verify(host, domain, asked)
    begin = partial(_go_on, domain, boot, before_resume)
    if not _unless(
        host, _OFF, begin if host.starts_paused else partial(mark, domain, boot)
    ):
        raise UnavailableError(f"{name} ended while it was started")


def _go_on(domain: Any, boot: UUID, before_resume: Callable[[Any], None]) -> None:
    """Let one that is paused before its first instruction run, as `boot`."""
    mark(domain, boot)
    before_resume(domain)
    domain.resume()


def adopt(host: Host, conn: Any, name: str, wanted: Element | None, boot: UUID) -> None:
    """Mark what runs as `boot`; switch it off where it isn't as `wanted`, if given."""
    domain = require(host, conn, name)
    _require_active(domain, name)
    if wanted is not None:
        _verify(host, domain, wanted)
    mark(domain, boot)


def shut_down(host: Host, conn: Any, name: str) -> bool:
    """Ask the guest to stop; tell whether there is anything to wait for."""
    domain = require(host, conn, name)
    match power_of(domain):
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
    if power_of(domain) is not PowerState.PAUSED:
        _require_active(domain, name)
        domain.suspend()


def resume(host: Host, conn: Any, name: str) -> None:
    domain = require(host, conn, name)
    if power_of(domain) is PowerState.PAUSED:
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


def remove_volumes(
    host: Host, conn: Any, spec: VmSpec, made: Sequence[VolumeTemplate]
) -> None:
    """Delete what was made for a domain that is gone, and can't tell of it."""
    lookups = (
        lambda: conn.lookupByName(spec.name),
        lambda: conn.lookupByUUIDString(str(spec.uuid)),  # somebody renamed it
    )
    if host.keeps_state and all(find(host, each) is None for each in lookups):
        for volume in made:
            volumes.remove(host.error, conn, volume)


def active(host: Host, conn: Any, name: str) -> bool:
    domain = find_ours(host, conn, name)
    return domain is not None and bool(domain.isActive())


def _mine_or_nobodys(host: Host, conn: Any, wanted: Element) -> Any | None:
    """Return our own domain of that UUID; refuse a stranger's name or UUID."""
    name, uuid = wanted.findtext("name", ""), wanted.findtext("uuid", "")
    by_uuid = find(host, lambda: conn.lookupByUUIDString(uuid))
    by_name = find(host, lambda: conn.lookupByName(name))
    for other in (by_uuid, by_name):
        if other is None:
            continue
        mine = other.UUIDString() == uuid and other.name() == name
        if not mine or not is_ours(host, other):
            raise ConflictError(
                f"{name}: another's domain has this name or UUID",
                other_uuid=other.UUIDString(),
                other_name=other.name(),
            )
    return by_uuid


def _defined(host: Host, conn: Any, wanted: Element) -> Any:
    xml, flags = render(wanted), _DEFINE_VALIDATE if host.validates else 0
    try:
        return conn.defineXMLFlags(xml, flags)
    except host.error as error:
        if code_of(error) != codes.OPERATION_FAILED:
            raise
        if _mine_or_nobodys(host, conn, wanted) is None:  # not a name taken since
            raise
        return conn.defineXMLFlags(xml, flags)


def _undo(host: Host, conn: Any, domain: Any, definition: str | None) -> None:
    """Define what was there, or nothing; firmware variables and TPM state stay.

    Where the hypervisor can't, the next definition meets what is left.
    """
    flags = _UNDEFINE_KEEPING if host.keeps_state else 0
    with suppress(host.error):
        if definition is None:
            domain.undefineFlags(flags)
        else:
            conn.defineXMLFlags(definition, 0)


def _make_volumes(host: Host, conn: Any, spec: VmSpec, domain: Any) -> None:
    """Make its disk unless it is there, and its seed anew unless it is in use."""
    if not host.keeps_state:
        return
    made = spec.volume.is_made and volumes.ensure(host.error, conn, spec.volume)
    if spec.seed is None or domain.isActive():
        return
    image = seed_iso(spec.seed.files(spec.name))
    try:
        volumes.upload(host.error, conn, spec.seed_volume, image)
    except BaseException:
        if made:
            with suppress(host.error):
                volumes.remove(host.error, conn, spec.volume)
        raise


def _is_as(host: Host, domain: Any, wanted: Element) -> bool:
    return tag_on(host, domain) == tag_in(wanted) and not _lost(domain, wanted)


def _require_whole(domain: Any, wanted: Element) -> None:
    lost = _lost(domain, wanted)
    if lost:
        raise _downgraded(domain.name(), lost)


def _lost(domain: Any, wanted: Element) -> tuple[str, ...]:
    return differences(wanted, parse(domain.XMLDesc(_XML_INACTIVE)))


def _lacks(domain: Any, wanted: Element) -> tuple[str, ...]:
    """Return what is not as asked of what runs."""
    live, defined = domain.XMLDesc(0), domain.XMLDesc(_XML_INACTIVE)
    return differences(wanted, parse(live), parse(defined))


def _verify(host: Host, domain: Any, wanted: Element) -> None:
    """Destroy what runs otherwise than asked."""
    lost = _lacks(domain, wanted)
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


def _unless(host: Host, fine: AbstractSet[int], act: Callable[[], object]) -> bool:
    """Do it; False when it failed with a code that says it needn't be done."""
    try:
        act()
    except host.error as error:
        if code_of(error) in fine:
            return False
        raise
    return True
