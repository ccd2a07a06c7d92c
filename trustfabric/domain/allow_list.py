"""Which hosts an API call may reach: names first, then the addresses they have.

A name has to be listed to be called at all. Whatever it resolves to has to be an
address of the public internet, unless that address, or a network it is in, is
listed too: a name that is ours today can point into our own network tomorrow.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

from trustfabric.errors import ForbiddenError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORTS = frozenset({80, 443})
_WORD = re.compile(r"(?P<host>\[.+\](?:/\d+)?|[^:]+)(?::(?P<port>\d{1,5}))?")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Public by its number, and a cloud's own door to its guests all the same."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    network: Network | None
    port: int | None
    """None: the standard ones."""

    def takes_port(self, port: int) -> bool:
        return port in DEFAULT_PORTS if self.port is None else port == self.port


@dataclass(frozen=True, slots=True)
class AllowList:
    """Hosts, addresses and networks, each with or without a port."""

    entries: tuple[_Entry, ...] = ()

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """Read `api.example.com`, `api.example.com:8443`, `10.0.0.0/8`, `[::1]:80`.

        ValueError for what is none of these.
        """
        return cls(tuple(_entry(word) for word in words))

    def check_host(self, host: str, port: int) -> None:
        """Raise ForbiddenError where this host may not be called on this port."""
        name = host.casefold().rstrip(".")
        address = _address(name)
        for entry in self.entries:
            if not entry.takes_port(port):
                continue
            if entry.name == name or (address is not None and _in(address, entry)):
                return
        raise ForbiddenError(f"{name[:255]}:{port} is not among EXECUTOR_ALLOWED_HOSTS")

    def check_address(self, host: str, address: str, port: int) -> None:
        """Raise ForbiddenError where `host` leads to what nobody may call."""
        found = _address(address)
        if found is None:
            raise ForbiddenError(f"{host}: {address!r} is no address")
        if _is_public(found) or any(
            entry.takes_port(port) and _in(found, entry) for entry in self.entries
        ):
            return
        raise ForbiddenError(
            f"{host} leads to {found}, which is no public address and is not "
            "among EXECUTOR_ALLOWED_HOSTS"
        )


def _entry(word: str) -> _Entry:
    found = _WORD.fullmatch(word.strip().casefold())
    if found is None:
        raise ValueError(f'"{word}" is not a host, with or without a port')
    port = None if found["port"] is None else int(found["port"])
    host = found["host"].replace("[", "").replace("]", "").rstrip(".")
    try:
        return _Entry(host, ipaddress.ip_network(host, strict=False), port)
    except ValueError:
        if "/" in host or ":" in host or "[" in word:
            raise ValueError(f'"{word}" is not a network') from None
        return _Entry(host, None, port)


def _address(text: str) -> Address | None:
    try:
        return _unwrapped(ipaddress.ip_address(text.split("%", maxsplit=1)[0]))
    except ValueError:
        return None


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _in(address: Address, entry: _Entry) -> bool:
    return entry.network is not None and address in entry.network


def _is_public(address: Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not (isinstance(address, ipaddress.IPv6Address) and address.is_site_local)
        and address not in _METADATA
    )
