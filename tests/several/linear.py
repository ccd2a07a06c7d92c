"""Whether what clients saw can have happened one after the other.

Each instance is a register that names its writes: a version has one writer, so the
order is known and checking it is cheap (no search).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise


class Outcome(StrEnum):
    DONE = "done"
    CONFLICT = "conflict"
    UNKNOWN = "unknown"
    READ = "read"


@dataclass(frozen=True)
class Op:
    """One call by one client; `version`: what it was told."""

    instance: int
    name: str
    outcome: Outcome
    began: float
    ended: float
    expected: int = 0
    version: int = 0


History = Mapping[int, Sequence[tuple[int, str]]]
"""By instance: version and reason of each row, oldest first."""


def violations(ops: Iterable[Op], history: History) -> list[str]:
    """Return what can't be explained; nothing where all is well."""
    found = []
    ops = list(ops)
    for instance, rows in history.items():
        mine = [op for op in ops if op.instance == instance]
        if [version for version, _ in rows] != list(range(1, len(rows) + 1)):
            found.append(f"{instance}: the versions are no chain")
        found += [f"{instance}: {text}" for text in _check(mine, rows)]
    return found


def _check(ops: Sequence[Op], rows: Sequence[tuple[int, str]]) -> Iterable[str]:
    made: dict[str, list[int]] = {}
    for version, reason in rows:
        made.setdefault(reason, []).append(version)
    for op in ops:
        versions = made.get(op.name, [])
        if len(versions) > 1:
            yield f"{op.name} was made {len(versions)} times"
        if op.outcome is Outcome.DONE and versions != [op.expected + 1]:
            yield f"lost update: {op.name} was acknowledged, and made as {versions}"
        if op.outcome is Outcome.CONFLICT and versions:
            yield f"{op.name} was refused and made all the same"
        if op.outcome is Outcome.CONFLICT and op.version == op.expected:
            yield f"false conflict: {op.name} was told its own version"
    yield from _in_real_time(ops, made, len(rows))


def _in_real_time(
    ops: Sequence[Op], made: Mapping[str, list[int]], newest: int
) -> Iterable[str]:
    """What was seen when something began, nobody later may not have seen."""
    known = 0
    ended = sorted(ops, key=lambda op: op.ended)
    at = 0
    for op in sorted(ops, key=lambda op: op.began):
        while at < len(ended) and ended[at].ended < op.began:
            known = max(known, _seen(ended[at]))
            at += 1
        if op.outcome is Outcome.DONE and op.expected + 1 <= known:
            yield f"{op.name} was made as {op.expected + 1} after {known} was seen"
        if op.outcome in (Outcome.READ, Outcome.CONFLICT) and op.version < known:
            yield f"stale read: {op.name} saw {op.version} after {known}"
        if op.version > newest:
            yield f"{op.name} saw {op.version}, which never was"
    for op, later in pairwise(sorted(ops, key=lambda op: (op.name, op.began))):
        if op.name == later.name and op.outcome is not Outcome.READ:
            yield f"two calls are named {op.name}"


def _seen(op: Op) -> int:
    return max(op.version, op.expected + 1 if op.outcome is Outcome.DONE else 0)
