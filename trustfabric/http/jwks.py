"""The published keys, kept for a moment: anybody may ask, as often as they like.

However many ask, the database is read once in a while, by one of them; where it is
away, who waited for that one is refused with it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from trustfabric.errors import UnavailableError

Keys = Sequence[Mapping[str, Any]]

KEPT: Final = timedelta(seconds=5)
"""How late a key is seen that another runtime published."""


class Jwks:
    def __init__(self) -> None:
        self._keys: Keys = ()
        self._read_at: datetime | None = None
        self._turn = asyncio.Lock()
        self._failures = 0

    def forget(self) -> None:
        """Have them read again: there is a new one."""
        self._read_at = None

    async def get(
        self, read: Callable[[], Awaitable[Keys]], now: Callable[[], datetime]
    ) -> Keys:
        """Return them as `read` last did, unless that is too long ago. Its errors."""
        failures = self._failures
        async with self._turn:
            began = now()
            if self._is_fresh(began):
                return self._keys
            if failures != self._failures:
                raise UnavailableError("the keys can't be read now")
            self._read_at = began  # who forgets them meanwhile has them read once more
            try:
                self._keys = await read()
            except BaseException:
                self._read_at = None
                self._failures += 1
                raise
            return self._keys

    def _is_fresh(self, now: datetime) -> bool:
        # A clock that went back makes nothing fresher.
        return self._read_at is not None and self._read_at <= now < self._read_at + KEPT
