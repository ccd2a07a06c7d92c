"""Secrets that playbooks refer to by name, and the mask that hides them again."""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from trustfabric.errors import NotFoundError

MASK = "***"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_SHORTEST_LINE = 4
"""Of a secret of many lines: shorter ones would mask half of every log."""
_SHORTEST_ENCODED = 6
"""Of what is sought inside other encodings: less would be found everywhere."""


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


_REFERENCE = re.compile(r"secret:([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})", re.ASCII)


def referred(document: Any) -> set[str]:
    """Return the names that a playbook's metadata refers to, wherever they are."""
    match document:
        case str():
            return set(_REFERENCE.findall(document))
        case Mapping():
            return {name for value in document.values() for name in referred(value)}
        case list() | tuple():
            return {name for value in document for name in referred(value)}
        case _:
            return set()


def masker_of(secrets: Secrets, metadata: Mapping[str, Any]) -> "Masker":
    """Return what hides the secrets of a playbook, those that there are."""
    values: list[str] = []
    for name in referred(metadata):
        try:
            values.append(secrets.resolve(name))
        except NotFoundError:
            continue
    return Masker(values)


class Masker:
    """Replaces secrets in text, also in the encodings they mostly travel in."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        self.longest = max(map(len, forms), default=0)
        longest_first = sorted(forms, key=len, reverse=True)
        self._pattern = (
            re.compile("|".join(map(re.escape, longest_first))) if forms else None
        )
        self._in_bytes = (
            re.compile(b"|".join(re.escape(_raw(form)) for form in longest_first))
            if forms
            else None
        )

    def mask(self, text: str) -> str:
        """Return the text without the secrets."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def mask_bytes(self, content: bytes) -> bytes:
        """Return the content of a file without the secrets."""
        if self._in_bytes is None:
            return content
        return self._in_bytes.sub(MASK.encode(), content)

    def mask_document(self, document: Any) -> Any:
        """Return a JSON document without the secrets, in its names neither."""
        match document:
            case str():
                return self.mask(document)
            case Mapping():
                return {
                    self.mask(str(key)): self.mask_document(value)
                    for key, value in document.items()
                }
            case list() | tuple():
                return [self.mask_document(value) for value in document]
            case _:
                return document


def _forms(secret: str) -> set[str]:
    lines = {line for line in secret.splitlines() if len(line) >= _SHORTEST_LINE}
    raw = _raw(secret)
    return {
        secret,
        *lines,
        quote(raw, safe=""),
        quote(raw),
        quote_plus(raw),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        *_base64_forms(raw),
        *([raw.hex(), raw.hex().upper()] if len(raw) >= _SHORTEST_ENCODED else []),
    }


def _base64_forms(raw: bytes) -> set[str]:
    """Return how base64 shows it, alone or in the middle of something longer."""
    forms: set[str] = set()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        forms.add(encode(raw).decode().rstrip("="))
        if len(raw) < _SHORTEST_ENCODED:
            continue
        for before in (1, 2):
            text = encode(b"\0" * before + raw).decode().rstrip("=")
            # The first characters hold bits of what stands before the secret, and
            # the last one may hold bits of what follows.
            forms.add(text[before + 1 : len(text) - 1])
        forms.add(encode(raw).decode().rstrip("=")[:-1])
    return forms


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
