"""The lifecycle as it is told: the same table that decides."""

from trustfabric.domain.lifecycle import document, mermaid
from trustfabric.domain.trust import TRANSITIONS, Lifecycle, Signal


def test_the_document_holds_every_move_and_no_other() -> None:
    told = {
        (move["from"], move["signal"]): move["to"] for move in document()["transitions"]
    }

    assert told == {
        (before, signal): after
        for before, moves in TRANSITIONS.items()
        for signal, after in moves.items()
    }


def test_the_document_says_where_an_instance_begins() -> None:
    assert document()["initial"] == "suspect"
    assert document()["states"] == list(Lifecycle)
    assert document()["signals"] == list(Signal)


def test_the_graph_draws_each_change_of_state_once() -> None:
    lines = mermaid().splitlines()

    assert lines[:2] == ["stateDiagram-v2", "    [*] --> suspect"]
    arrows = [line.split(":")[0].strip() for line in lines[2:]]
    assert len(arrows) == len(set(arrows))
    assert "suspect --> restored" in arrows
    assert "restored --> suspect" in arrows
    assert not [arrow for arrow in arrows if "quarantined --> quarantined" in arrow]
