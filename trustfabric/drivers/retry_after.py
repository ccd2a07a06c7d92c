"""How long an API asks us to wait (RFC 9110, Retry-After)."""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

LONGEST_S = 300.0
"""More is not waited at once, whatever is asked for."""


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds asked for; a date is measured from the answer's own one."""
    said = {name.casefold(): value for name, value in headers.items()}
    text = said.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal() and len(text) <= 9:  # noqa: PLR2004
        return min(float(text), LONGEST_S)
    try:
        wait = parsedate_to_datetime(text) - parsedate_to_datetime(said["date"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return min(max(wait.total_seconds(), 0.0), LONGEST_S)
