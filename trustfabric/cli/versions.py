"""The version a write is based on: the caller's, or the one just read, said aloud."""

from typing import Any

from trustfabric.cli import render
from trustfabric.cli.client import Client
from trustfabric.cli.errors import BrokenAnswerError


async def current(client: Client, path: str) -> dict[str, Any]:
    """Read the row that a write is about to be based on, and print its version."""
    row = await client.row(path)
    if not isinstance(row.get("version"), int):
        raise BrokenAnswerError(f"GET {path}: no version in the answer")
    render.note(f"based on version {row['version']}, read just now")
    return row


async def version(client: Client, path: str, given: int | None) -> int:
    if given is not None:
        return given
    row = await current(client, path)
    return int(row["version"])
