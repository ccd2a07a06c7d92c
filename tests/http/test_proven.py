"""A token that was proven is known for a while, and never beyond its end."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from trustfabric.errors import UnauthenticatedError
from trustfabric.http import proven
from trustfabric.http.proven import Proven
from trustfabric.http.tokens import Tokens

TOKENS = Tokens("a secret that is long enough for the algorithm")
NOW = datetime.now(UTC)


def signed(ttl_s: int, sub: int = 7) -> str:
    return TOKENS.issue({"sub": sub, "role": "user", "exp": int(time.time()) + ttl_s})


def test_a_known_token_proves_the_same_again() -> None:
    known, token = Proven(TOKENS, lambda: NOW), signed(600)

    assert known.check(token) is known.check(token)
    assert known.check(token) == TOKENS.check(token)


def test_a_known_token_is_checked_whole_again_when_it_may_have_ended() -> None:
    clock = [NOW]
    known, token = Proven(TOKENS, lambda: clock[0]), signed(600)
    first = known.check(token)
    clock[0] = first.expires_at - timedelta(seconds=1)

    assert known.check(token) is not first


def test_what_was_never_good_is_refused_each_time() -> None:
    known = Proven(TOKENS, lambda: NOW)
    for token in (signed(-5), signed(600)[:-2], "\udcff"):
        for _ in range(2):
            with pytest.raises(UnauthenticatedError):
                known.check(token)


def test_only_so_many_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proven, "KEPT", 2)
    known = Proven(TOKENS, lambda: NOW)
    tokens = [signed(600, sub) for sub in (1, 2, 3)]
    first, _, third = [known.check(token) for token in tokens]

    assert known.check(tokens[2]) is third
    assert known.check(tokens[0]) is not first
