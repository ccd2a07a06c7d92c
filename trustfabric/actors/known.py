"""The rows that the registry wrote last, so that not each has to be read again.

What is decided on one of them is only written where the row is still as it is here:
another runtime's change, or a hand in the database, makes it miss, and it is read.
"""

from collections.abc import Iterable

from trustfabric.actors.changes import ApplyChange
from trustfabric.db.trust import Rows
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import Change, Facts, Snapshot, asks_facts

LIMIT = 10_000
"""Rows kept, those written last; a few kilobytes each at most."""

_NO_FACTS = Facts(active_run=None, last_run_ended_at=None, running=False)


class Known:
    """Rows by their instance."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._rows: dict[InstanceId, Snapshot] = {}

    def keep(self, snapshots: Iterable[Snapshot]) -> None:
        """Remember rows that were committed."""
        rows = self._rows
        for one in snapshots:
            rows.pop(one.instance_id, None)
            rows[one.instance_id] = one
        while len(rows) > self._limit:
            del rows[next(iter(rows))]

    def forget(self, ids: Iterable[InstanceId]) -> None:
        for instance_id in ids:
            self._rows.pop(instance_id, None)

    def rows_for(self, changes: Iterable[ApplyChange]) -> Rows:
        """Return the rows of those that can be decided without reading."""
        found: Rows = {}
        unfit: set[InstanceId] = set()
        for one in changes:
            row = self._rows.get(one.instance_id)
            if row is not None and _suits(row, one):
                found[one.instance_id] = row, _NO_FACTS
            else:
                unfit.add(one.instance_id)
        for instance_id in unfit & found.keys():
            del found[instance_id]
        return found


def _suits(row: Snapshot, one: ApplyChange) -> bool:
    return (
        isinstance(one.change, Change)
        and not asks_facts(row, one.change)
        and one.owner_id in (None, row.owner_id)
        and one.expected_version in (None, row.version)
    )
