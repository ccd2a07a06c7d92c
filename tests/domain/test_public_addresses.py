"""What a name may lead to (S19): the public internet, in whatever disguise it comes."""

import pytest

from trustfabric.domain.allow_list import AllowList
from trustfabric.errors import ForbiddenError

LISTED = AllowList.of(["api.example.com"])


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",  # carriers' own
        "100.127.255.255",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.1",
        "192.0.2.1",
        "192.168.0.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",  # IPv4-compatible
        "::ffff:127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",  # NAT64
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",  # NAT64 of a network's own
        "100::1",
        "2001:0:7f00:1::1",  # Teredo
        "2001:db8::1",
        "2002:7f00:1::1",  # 6to4
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",  # site-local
        "feff::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_s19_what_is_not_public_is_not_called(address: str) -> None:
    with pytest.raises(ForbiddenError):
        LISTED.check_address("api.example.com", address, 443)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"],
)
def test_what_is_public_may_be_called(address: str) -> None:
    LISTED.check_address("api.example.com", address, 443)
