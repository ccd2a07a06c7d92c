"""mypy refuses a message to the wrong actor, and an answer used as the wrong type."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
from trustfabric.supervision import Actor, Address, Notice, Request

class Left(Actor): ...
class Right(Actor): ...
class Lefter(Left): ...
class Size(Request["Left", int]): ...
class Poke(Notice["Left"]): ...

async def program(
    left: Address[Left], right: Address[Right], er: Address[Lefter]
) -> None:
    size: int = await left.ask(Size(), within_s=1.0)
    left.tell(Poke())
    er.tell(Poke())
    size = await er.ask(Size(), within_s=1.0)
    size = left.ask(Size(), block=True)
    {line}
"""


@pytest.mark.parametrize(
    ("line", "accepted"),
    [
        ("pass", True),
        ("await right.ask(Size(), within_s=1.0)", False),
        ("right.tell(Poke())", False),
        ("text: str = await left.ask(Size(), within_s=1.0)", False),
        ("await left.ask(Poke(), within_s=1.0)", False),
        ("left.tell(Size())", False),
        ("await left.ask(Size())", False),
    ],
)
def test_mypy_knows_who_may_get_what(
    tmp_path: Path, line: str, *, accepted: bool
) -> None:
    from mypy import api

    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(line=line))

    out, _, status = api.run(["--strict", str(program)])

    assert (status == 0) is accepted, out
