"""Secrets that playbooks refer to by name, and the mask that hides them again."""

import base64
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from trustfabric.errors import NotFoundError

MASK = "***"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_SHORTEST_LINE = 4
"""Of a secret of many lines: shorter ones would mask half of every log."""


class Secrets:
    """Values by name: a file of the directory, else an entry of the mapping.

    Files are read at each use, so that a rotated secret is the one that is used.
    """

    def __init__(
        self, values: Mapping[str, str] | None = None, directory: Path | None = None
    ) -> None:
        self._values = values or {}
        self._directory = directory

    def resolve(self, name: str) -> str:
        """Return the secret; NotFoundError names it where there is none."""
        if not _NAME.fullmatch(name):
            raise NotFoundError(f"secret {name[:128]!r}: no such name")
        if self._directory is not None:
            try:
                return (self._directory / name).read_text().rstrip("\r\n")
            except (OSError, UnicodeDecodeError):
                pass
        try:
            return self._values[name]
        except KeyError:
            raise NotFoundError(f"secret {name}: not configured") from None


class Masker:
    """Replaces secrets in text, also in the two encodings they mostly travel in."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        self.longest = max(map(len, forms), default=0)
        longest_first = sorted(forms, key=len, reverse=True)
        self._pattern = (
            re.compile("|".join(map(re.escape, longest_first))) if forms else None
        )

    def mask(self, text: str) -> str:
        """Return the text without the secrets."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)


def _forms(secret: str) -> set[str]:
    lines = {line for line in secret.splitlines() if len(line) >= _SHORTEST_LINE}
    raw = secret.encode("utf-8", "surrogateescape")
    return {
        secret,
        *lines,
        quote(raw, safe=""),
        base64.b64encode(raw).decode().rstrip("="),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
    }
