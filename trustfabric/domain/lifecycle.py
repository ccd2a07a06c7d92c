"""The lifecycle as it is told to people: the table as a document, and as a graph."""

from collections.abc import Iterator
from typing import Any

from trustfabric.domain.trust import STAYS, TRANSITIONS, Lifecycle, Signal


def document() -> dict[str, Any]:
    """Return every state, every signal, and every move there is."""
    return {
        "initial": Lifecycle.SUSPECT,
        "states": list(Lifecycle),
        "signals": list(Signal),
        "transitions": [
            {"from": before, "signal": signal, "to": after}
            for before, signal, after in _moves()
        ],
        "stays": sorted(STAYS),
    }


def mermaid() -> str:
    """Return the same as a Mermaid state diagram; signals of one move on one arrow."""
    arrows: dict[tuple[Lifecycle, Lifecycle], list[Signal]] = {}
    for before, signal, after in _moves():
        if before is not after:
            arrows.setdefault((before, after), []).append(signal)
    lines = ["stateDiagram-v2", f"    [*] --> {Lifecycle.SUSPECT}"]
    lines += [
        f"    {before} --> {after}: {', '.join(signals)}"
        for (before, after), signals in arrows.items()
    ]
    return "\n".join(lines) + "\n"


def _moves() -> Iterator[tuple[Lifecycle, Signal, Lifecycle]]:
    for before, moves in TRANSITIONS.items():
        for signal, after in moves.items():
            yield before, signal, after
