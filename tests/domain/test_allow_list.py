"""Hosts that may be called: by name, and by what the name leads to."""

import pytest

from trustfabric.domain.allow_list import AllowList
from trustfabric.errors import ForbiddenError


@pytest.mark.parametrize(
    ("listed", "host", "port"),
    [
        ("api.example.com", "api.example.com", 443),
        ("api.example.com", "API.Example.com.", 80),
        ("api.example.com:8443", "api.example.com", 8443),
        ("10.0.0.0/8", "10.1.2.3", 443),
        ("[::1]:80", "::1", 80),
        ("[fd00::/8]", "fd12::1", 443),
        ("127.0.0.1", "::ffff:127.0.0.1", 80),
    ],
)
def test_what_is_listed_may_be_called(listed: str, host: str, port: int) -> None:
    AllowList.of([listed]).check_host(host, port)


@pytest.mark.parametrize(
    ("listed", "host", "port"),
    [
        ("api.example.com", "api.example.com", 8443),
        ("api.example.com:8443", "api.example.com", 443),
        ("example.com", "api.example.com", 443),
        ("example.com", "example.com.evil.test", 443),
        ("example.com", "notexample.com", 443),
        ("10.0.0.0/8", "11.0.0.1", 443),
        ("10.0.0.0/8", "10.evil.test", 443),
    ],
)
def test_what_is_not_listed_may_not(listed: str, host: str, port: int) -> None:
    with pytest.raises(ForbiddenError):
        AllowList.of([listed]).check_host(host, port)


def test_nothing_is_listed_by_itself() -> None:
    with pytest.raises(ForbiddenError):
        AllowList().check_host("example.com", 443)


def test_a_private_address_is_called_where_it_is_listed_too() -> None:
    allowed = AllowList.of(["api.internal", "10.0.0.0/8"])

    allowed.check_address("api.internal", "10.1.2.3", 443)
    allowed.check_address("api.internal", "93.184.216.34", 443)
    with pytest.raises(ForbiddenError, match=r"192\.168\.1\.1"):
        allowed.check_address("api.internal", "192.168.1.1", 443)
    with pytest.raises(ForbiddenError):
        allowed.check_address("api.internal", "10.1.2.3", 8443)


@pytest.mark.parametrize("word", ["", "a/b", "::1", "a:b", "10.0.0.0/99", "[x]"])
def test_what_is_no_host_is_no_entry(word: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        AllowList.of([word])
