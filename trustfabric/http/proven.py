"""Tokens that were proven a moment ago: their signature is not computed each time.

Only what can't change is remembered: who a token proves, and until when. Whether a
run's lease still holds is asked each time (app.py).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta

from trustfabric.http.tokens import Principal, Tokens, as_bytes

KEPT = 1024
_SURE = timedelta(seconds=1)
"""A token is checked whole again in its last second: it may end on the full one."""


class Proven:
    """Checks tokens as `Tokens` does; holds digests, never a token."""

    def __init__(self, tokens: Tokens, now: Callable[[], datetime]) -> None:
        self._tokens = tokens
        self._now = now
        self._known: OrderedDict[bytes, Principal] = OrderedDict()

    def check(self, token: str) -> Principal:
        """Return who the token proves. UnauthenticatedError, without saying why."""
        digest = hashlib.sha256(as_bytes(token)).digest()
        known = self._known.pop(digest, None)
        if known is None or known.expires_at - _SURE <= self._now():
            known = self._tokens.check(token)
        self._known[digest] = known
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return known
