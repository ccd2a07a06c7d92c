"""Writes that must be one commit with a change of trust."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from trustfabric.db.session import Connection
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import FabricError


class Companion(Protocol):
    """A write that must be one commit with a change of trust.

    It runs before the registry row is saved, inside a savepoint of its own; a
    FabricError raised here refuses the whole change and nothing of it stays.
    """

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        """Write, and return the id of a row that was made, if one was."""
        ...


@runtime_checkable
class Gathered(Companion, Protocol):
    """A companion that is written together with others of its kind.

    That is done where it is its change's only one, without a savepoint.
    """

    @staticmethod
    async def write_all(
        conn: Connection, batch: Sequence[tuple[Any, Snapshot]]
    ) -> Sequence[int | FabricError]:
        """Write what can be; of what is refused nothing, and its error is returned.

        Whatever is raised spoils the transaction for all of them.
        """
        ...


async def write_alone(
    conn: Connection, companion: Gathered, before: Snapshot
) -> int | None:
    """Write one of them by itself."""
    (written,) = await companion.write_all(conn, [(companion, before)])
    if isinstance(written, FabricError):
        raise written
    return written
