"""Documents of evidence on disk, for whoever verifies them at a terminal.

A document holds cases, or one verdict that a runtime recorded.
"""

from collections.abc import Iterator
from pathlib import Path

from trustfabric.domain.attestation.cases import judge_document
from trustfabric.domain.attestation.stored import (
    is_stored,
    judge_again,
    parse_stored,
    verdict_view,
)
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import JsonValue, Reject
from trustfabric.domain.evidence.packaged import anchors_from, packaged_anchors
from trustfabric.errors import MalformedError

_MAX_FILE = 16 * 1024 * 1024


def verify_cases(
    document: Path, *, anchors: Path | None = None, only: str | None = None
) -> Iterator[dict[str, JsonValue]]:
    """Judge each case; files are relative to the document.

    What is wrong with the document, its files or the anchors is a MalformedError,
    before the first verdict. Without `anchors` those of this package count.
    """
    folder, whole = document.parent, _document(document)
    if is_stored(whole):
        return iter([verify_stored(whole, anchors=anchors)])
    return judge_document(
        whole, lambda name: _read(folder / name), _believed(anchors), only
    )


def verify_stored(
    document: bytes, *, anchors: Path | None = None
) -> dict[str, JsonValue]:
    """Come to a recorded verdict again, with all that it rests on but the roots."""
    stored = parse_stored(document)
    return verdict_view(stored, judge_again(stored, _believed(anchors)))


def _believed(folder: Path | None) -> Anchors:
    return packaged_anchors() if folder is None else _anchors(folder)


def _anchors(folder: Path) -> Anchors:
    try:
        found = anchors_from(lambda name: (folder / name).read_bytes())
    except (OSError, Reject) as error:
        raise MalformedError(f"anchors in {folder}: {error}") from None
    if not (found.amd or found.intel or found.nvidia):
        raise MalformedError(f"no anchors in {folder}")
    return found


def _document(path: Path) -> bytes:
    try:
        return _read(path)
    except (OSError, ValueError) as error:
        raise MalformedError(f"{path}: {error}") from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise ValueError(f"larger than {_MAX_FILE} bytes")
    return data
