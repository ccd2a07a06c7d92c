"""A link to PostgreSQL that breaks where a test says: around a commit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

EXECUTE = b"E\0\0\0\x09\0\0\0\0\0"
"""The message that has a statement done, prepared or not."""


class Cut(StrEnum):
    """Where the next commit is cut off."""

    BEFORE = "the server never hears of it"
    AFTER = "it is made, and nobody is told"


@dataclass
class Link:
    """The proxy's switch."""

    url: str
    marker: bytes
    """What a transaction must have said for its commit to be the one that is cut."""
    cut: Cut | None = None
    """Once: the next such commit, then never again."""
    cuts: int = field(default=0, init=False)
    goes_away: bool = False
    """After that nothing goes over the link any more."""
    gone: bool = field(default=False, init=False)


@asynccontextmanager
async def a_link(database_url: str, folder: Path, marker: bytes) -> AsyncIterator[Link]:
    """Stand between whoever connects to `url` and the true server's socket."""
    known = conninfo_to_dict(database_url)
    port = known.get("port") or "5432"
    true_socket = Path(str(known["host"])) / f".s.PGSQL.{port}"
    link = Link(make_conninfo(database_url, host=str(folder)), marker)

    async def pass_on(
        client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        server, to_server = await asyncio.open_unix_connection(str(true_socket))
        back = asyncio.create_task(_pump(server, to_client))
        marked = begun = False
        try:
            while (data := await client.read(65_536)) and not link.gone:
                marked = marked or link.marker in data
                begun = begun or b"BEGIN" in data
                # Outside a transaction a statement is its own commit.
                ends = b"COMMIT" in data or (EXECUTE in data and not begun)
                if link.cut is not None and marked and ends:
                    cut, link.cut = link.cut, None
                    link.cuts += 1
                    back.cancel()
                    await asyncio.wait([back])  # one may read at a time
                    link.gone = link.goes_away
                    if cut is Cut.AFTER:
                        to_server.write(data)
                        assert await server.read(1), "the server made nothing of it"
                    return
                if ends:
                    marked = begun = False
                to_server.write(data)
                await to_server.drain()
        except ConnectionError:
            pass
        finally:
            back.cancel()
            to_server.close()
            to_client.close()

    listening = await asyncio.start_unix_server(
        pass_on, str(folder / f".s.PGSQL.{port}")
    )
    async with listening:
        yield link
        listening.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
