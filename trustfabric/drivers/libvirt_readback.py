"""What a hypervisor left out of, or added to, the domain that was asked for.

libvirt drops what it doesn't know without a word, and people change definitions, so
what was made is compared with what was asked before anything of it runs. libvirt may
add details (addresses, aliases) and what every machine has; nobody may take anything
away, or add a disk, a share of the host, any other device or another isolation. What
libvirt fills in for every machine (emulator, CPU model) is left to it: it is the
host's, and no specification names it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Final
from xml.etree.ElementTree import Element

_WHOLE: Final = ("os", "launchSecurity", "vcpu", "memoryBacking")
_OF_EVERY_MACHINE: Final = frozenset(
    ("emulator", "controller", "input", "console", "audio", "watchdog", "memballoon")
)
"""Devices that libvirt adds by itself."""
_BOOTED: Final = ("kernel", "initrd", "cmdline", "dtb", "init", "initarg", "initenv")
"""In place of what is on the disk."""
_OPENED: Final = ("shareable", "log")
"""Details of a device that let others have what is the guest's alone."""
_UNITS: Final = {"KiB": 1, "MiB": 1 << 10, "GiB": 1 << 20}
_UNSTABLE: Final = {"machine"}
"""`q35` comes back as the version that it stands for."""


def differences(
    wanted: Element, made: Element, defined: Element | None = None
) -> tuple[str, ...]:
    """Return what is not as asked, a phrase each; empty when all is.

    Of what runs, `defined` says what it was started from.
    """
    if defined is not None:
        made = _with_choice(made, defined)
    return (*_whole(wanted, made), *_beside(wanted, made), *_devices(wanted, made))


def _with_choice(live: Element, defined: Element) -> Element:
    """Return what runs with the demand that its firmware was chosen for.

    libvirt 9.0 shows a guest that runs only the image it chose, in flash that nobody
    writes to. It was chosen, where the definition leaves that to libvirt.
    """
    asked, got = defined.find("os"), live.find("os")
    if asked is None or got is None or got.get("firmware") is not None:
        return live
    demand, loader = asked.get("firmware"), got.find("loader")
    if demand is None or asked.findtext("loader") or loader is None or not loader.text:
        return live
    if loader.get("type") != "pflash" or loader.get("readonly") != "yes":
        return live  # such as a BIOS
    live = deepcopy(live)
    live.findall("os")[0].set("firmware", demand)
    return live


def _whole(wanted: Element, made: Element) -> Iterable[str]:
    if wanted.get("type") != made.get("type"):
        yield f"{made.get('type')} instead of {wanted.get('type')}"
    for tag in _WHOLE:
        asked, got = wanted.find(tag), made.find(tag)
        if asked is None and got is not None and tag == "launchSecurity":
            yield f"{tag} was added"
        elif asked is not None and (got is None or not _covers(got, asked)):
            yield f"{tag} is not as asked"
    yield from _booted(wanted, made)


def _booted(wanted: Element, made: Element) -> Iterable[str]:
    """Yield what would run before the disk, and wasn't asked for."""
    asked, got = wanted.find("os"), made.find("os")
    if asked is None or got is None:
        return
    open_to_choice = asked.get("firmware") is not None
    named = asked.find("loader") is not None
    added = _BOOTED if open_to_choice or named else ("loader", *_BOOTED)
    if not open_to_choice and not named and got.get("firmware") is not None:
        yield "firmware was added"
    for tag in added:
        if asked.find(tag) is None and got.find(tag) is not None:
            yield f"{tag} was added"


def _beside(wanted: Element, made: Element) -> Iterable[str]:
    if _kibibytes(wanted) != _kibibytes(made):
        yield "memory is not as asked"
    if wanted.find("sysinfo") is None and made.find("sysinfo") is not None:
        yield "sysinfo was added"  # a guest takes credentials from there
    # Such as arguments for QEMU itself: they can be anything.
    yield from (f"{each.tag} was added" for each in made if each.tag.startswith("{"))


def _kibibytes(domain: Element) -> int | None:
    memory = domain.find("memory")
    if memory is None or memory.text is None:
        return None
    unit, size = memory.get("unit", "KiB"), _number(memory.text.strip())
    return None if size is None or unit not in _UNITS else size * _UNITS[unit]


def _devices(wanted: Element, made: Element) -> Iterable[str]:
    asked = Counter(device.tag for device in wanted.findall("devices/*"))
    got = Counter(device.tag for device in made.findall("devices/*"))
    for tag in sorted((asked.keys() | got.keys()) - _OF_EVERY_MACHINE):
        if asked[tag] != got[tag]:
            yield f"{got[tag]} {tag} instead of {asked[tag]}"
        elif not _all_covered(
            wanted.findall(f"devices/{tag}"), made.findall(f"devices/{tag}")
        ):
            yield f"{tag} is not as asked"


def _covers(got: Element, asked: Element) -> bool:
    """Tell whether `got` says all that `asked` does, and maybe more."""
    return (
        got.tag == asked.tag
        and not (_ends_chain(asked) and len(got))
        and all(asked.find(tag) is not None or got.find(tag) is None for tag in _OPENED)
        and (_left_open(asked) or _same(got.text, asked.text))
        and all(
            _same(got.get(key), value)
            for key, value in asked.attrib.items()
            if key not in _UNSTABLE
        )
        and _all_covered(list(asked), list(got))
    )


def _left_open(asked: Element) -> bool:
    """Tell whether the hypervisor is to choose the image itself."""
    return asked.tag == "loader" and not asked.text


def _ends_chain(asked: Element) -> bool:
    """Tell whether it says that an image lies on no other."""
    return asked.tag == "backingStore" and not len(asked)


def _all_covered(asked: Sequence[Element], got: Sequence[Element]) -> bool:
    left = list(got)
    for element in asked:
        match = next((other for other in left if _covers(other, element)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same(got: str | None, asked: str | None) -> bool:
    first, second = (got or "").strip(), (asked or "").strip()
    return first == second or (
        second.startswith("0x") and _number(first) == _number(second)
    )


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None
