"""What the ansible host process prints, as lines of the log and as what they prove."""

from dataclasses import dataclass, field
from typing import Any

import orjson

from trustfabric.domain.failures import FailureReason
from trustfabric.drivers.output import OutputLimits, OutputLines
from trustfabric.drivers.secrets import Masker

_LONGEST = 1 << 20
"""Of one event; the host process prints no longer ones."""
RECORDS = 2000

UNREACHABLE, FAILED = "dark", "failures"


@dataclass(slots=True)
class Told:
    """What ansible said that it did."""

    records: list[dict[str, Any]] = field(default_factory=list)
    dropped: int = 0
    stats: dict[str, dict[str, int]] | None = None
    output: dict[str, Any] | None = None
    """What set_stats left."""
    begun: bool = False
    """The host process itself was reached."""
    code: int | None = None
    """ansible-playbook's own; None where it never ended by itself."""

    def hosts(self, kind: str) -> list[str]:
        """Return the hosts that the recap counts something of this kind for."""
        return sorted(host for host, n in (self.stats or {}).get(kind, {}).items() if n)

    def judged(self) -> tuple[str, FailureReason | None]:
        """Say how it ended, and why where it failed."""
        if failed := self.hosts(FAILED):
            return f"failed on {_names(failed)}", FailureReason.EXECUTION_FAILURE
        if dark := self.hosts(UNREACHABLE):
            reason = FailureReason.TRANSIENT_INFRASTRUCTURE
            return f"could not reach {_names(dark)}", reason
        if self.code == 0:
            if not any((self.stats or {}).values()):
                return "no host matched the plays", FailureReason.PLAYBOOK_BUG
            return f"done on {_names(self._reached())}", None
        if not self.records:
            return (
                f"ansible could not run the playbook (exit code {self.code})",
                FailureReason.PLAYBOOK_BUG,
            )
        return f"exit code {self.code}", FailureReason.EXECUTION_FAILURE

    def document(self) -> dict[str, Any]:
        """Return what is kept of it as an artifact."""
        return {
            "tasks": self.records,
            "tasks_dropped": self.dropped,
            "stats": self.stats,
            "code": self.code,
        }

    def _reached(self) -> list[str]:
        return sorted({host for hosts in (self.stats or {}).values() for host in hosts})


class EventLines:
    """Takes the host process's output, gives the log's lines, keeps the rest."""

    def __init__(self, masker: Masker, limits: OutputLimits) -> None:
        self.told = Told()
        self._masker = masker
        self._lines = OutputLines(masker, limits)
        self._partial = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that these bytes complete."""
        *complete, self._partial = (self._partial + data).split(b"\n")
        lines = [line for raw in complete for line in self._event(raw)]
        if len(self._partial) > _LONGEST:
            lines += self._plain(self._partial)
            self._partial = b""
        return lines

    def end(self) -> list[str]:
        """Return what is left when the output has ended."""
        return [*self._event(self._partial), *self._lines.end()]

    def _event(self, raw: bytes) -> list[str]:
        if not raw:
            return []
        try:
            event = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return self._plain(raw)
        if not isinstance(event, dict):
            return self._plain(raw)
        self._keep(event)
        return [
            line
            for text in event.get("lines", [])
            for line in self._plain(str(text).encode("utf-8", "replace"))
        ]

    def _plain(self, raw: bytes) -> list[str]:
        return self._lines.feed(raw + b"\n")

    def _keep(self, event: dict[str, Any]) -> None:
        event = self._masker.mask_document(event)
        if record := event.get("record"):
            if len(self.told.records) < RECORDS:
                self.told.records.append(record)
            else:
                self.told.dropped += 1
        if stats := event.get("stats"):
            self.told.stats = stats
            self.told.output = event.get("output")
        self.told.begun = self.told.begun or event.get("begun") is True
        if end := event.get("end"):
            self.told.code = end.get("rc")


def _names(hosts: list[str]) -> str:
    shown = ", ".join(hosts[:10])
    return shown if len(hosts) <= 10 else f"{shown} and {len(hosts) - 10} more"  # noqa: PLR2004
