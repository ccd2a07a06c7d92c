"""How a time is written: RFC 3339, in UTC, with `Z`."""

from datetime import UTC, datetime


def rfc3339(at: datetime) -> str:
    """Write an aware time, with microseconds only where there are any."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
