"""What is counted while the process lives: plain numbers, whoever shows them.

Labels come from closed sets, and each family is bounded all the same: what comes
beyond `FAMILY` of them is counted as `other`.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

FAMILY = 200
"""Combinations of labels that one family keeps apart."""

OTHER = "other"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LONG_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """A family of counters. The name is without `_total`."""

    name: str
    means: str
    labels: Labels = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """A family of histograms."""

    name: str
    means: str
    buckets: tuple[float, ...]
    labels: Labels = ()


VERDICTS = Counted(
    "trustfabric_verdicts",
    "Verdicts on evidence, by evidence kind, status and code.",
    ("kind", "status", "code"),
)
MOVES = Counted(
    "trustfabric_lifecycle_moves",
    "Moves from one lifecycle state to another.",
    ("previous", "current"),
)
QUARANTINES = Counted(
    "trustfabric_quarantines",
    "Instances that were quarantined, by what did it.",
    ("cause",),
)
EXPIRIES = Counted(
    "trustfabric_trust_expired",
    "Instances that fell to suspect because no new verdict came in time.",
)
TO_QUARANTINE = Measured(
    "trustfabric_distrust_to_quarantine_seconds",
    "From a challenge whose evidence was rejected to the committed quarantine.",
    SECONDS,
)
TO_RESTORATION = Measured(
    "trustfabric_quarantine_to_restoration_seconds",
    "From a quarantine to the trusted verdict that ended it.",
    LONG_SECONDS,
)
DELIVERY = Measured(
    "trustfabric_stream_delivery_seconds",
    "From a decision to its event being handed to this runtime's followers.",
    SECONDS,
    ("stream",),
)
TOLD = Counted(
    "trustfabric_stream_notices",
    "Clients of streams that were told they lagged, or to start over.",
    ("stream", "notice"),
)
RUNS = Counted(
    "trustfabric_runs_ended",
    "Remediation runs that ended, by status and failure reason.",
    ("status", "failure_reason"),
)
ATTEMPTS = Counted(
    "trustfabric_run_attempts", "Times that a run was started, retries included."
)
BREACHES = Counted(
    "trustfabric_sla_breaches", "Runs that ended after their SLA deadline."
)
DECISIONS = Counted(
    "trustfabric_gate_decisions",
    "Launches that the placement gate decided on.",
    ("verb", "allowed"),
)
REFUSALS = Counted(
    "trustfabric_gate_refusals",
    "Kinds of notes that a refused launch was refused for.",
    ("note",),
)
BATCH_SIZE = Measured(
    "trustfabric_registry_batch_size",
    "Changes of trust decided in one commit.",
    SIZES,
)
COMMIT = Measured(
    "trustfabric_registry_commit_seconds",
    "Reading, deciding and committing one batch of changes of trust.",
    SECONDS,
)


class Spread:
    """How measurements are spread over the buckets of their family."""

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum += value


class Counters:
    """Everything that was counted; for the loop's thread only."""

    def __init__(self) -> None:
        self._counts: dict[Counted, dict[Labels, int]] = {}
        self._spreads: dict[Measured, dict[Labels, Spread]] = {}

    def count(self, family: Counted, *labels: str, by: int = 1) -> None:
        known = self._counts.setdefault(family, {})
        if labels not in known and len(known) >= FAMILY:
            labels = (OTHER,) * len(labels)
        known[labels] = known.get(labels, 0) + by

    def measure(self, family: Measured, value: float, *labels: str) -> None:
        known = self._spreads.setdefault(family, {})
        if labels not in known and len(known) >= FAMILY:
            labels = (OTHER,) * len(labels)
        spread = known.get(labels)
        if spread is None:
            spread = known[labels] = Spread(family.buckets)
        spread.add(max(0.0, value))

    def counts(self, family: Counted) -> Iterator[tuple[Labels, int]]:
        yield from self._counts.get(family, {}).items()

    def spreads(self, family: Measured) -> Iterator[tuple[Labels, Spread]]:
        yield from self._spreads.get(family, {}).items()


COUNTED = (
    VERDICTS,
    MOVES,
    QUARANTINES,
    EXPIRIES,
    TOLD,
    RUNS,
    ATTEMPTS,
    BREACHES,
    DECISIONS,
    REFUSALS,
)
MEASURED = (TO_QUARANTINE, TO_RESTORATION, DELIVERY, BATCH_SIZE, COMMIT)
