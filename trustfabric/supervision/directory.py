"""Every actor of a tree by its path."""

from collections.abc import Iterator
from typing import Protocol

from trustfabric.supervision.cell import Cell


class Book(Protocol):
    """The children of one supervisor by their keys."""

    def cell(self, key: str) -> Cell | None: ...

    def cells(self) -> Iterator[Cell]: ...


class Directory:
    """Knows named actors; keyed ones stand in their supervisors' books only."""

    def __init__(self) -> None:
        self._named: dict[str, Cell] = {}
        self._books: dict[str, Book] = {}

    def add(self, cell: Cell) -> None:
        self._named[cell.path] = cell

    def add_book(self, path: str, book: Book) -> None:
        """Add the children of the supervisor at `path`, as they come and go."""
        self._books[path] = book

    def drop(self, cell: Cell) -> None:
        self._named.pop(cell.path, None)

    def find(self, path: str) -> Cell:
        """Return who has its place at a path; KeyError if nobody has."""
        cell = self._named.get(path)
        if cell is None:
            above, _, key = path.rpartition("/")
            book = self._books.get(above)
            cell = None if book is None else book.cell(key)
        if cell is None:
            raise KeyError(path)
        return cell

    def all(self) -> Iterator[Cell]:
        """Return everybody, keyed children right after their supervisor.

        Otherwise by when each was announced: an address of a spec is before the
        supervisors above it.
        """
        for path, cell in list(self._named.items()):
            yield cell
            book = self._books.get(path)
            if book is not None:
                yield from book.cells()
