"""Measures every figure beside its peer; prints a table and writes results.json.

python -m benchmarks [--quick] [--rounds N] [--only WORD] [--output FILE]
"""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks import (
    actor_figures,
    asked,
    bench,
    evidence,
    frame,
    lifetime,
    machines,
    queue,
    registry,
    requests,
    streams,
)

PARTS = (
    *actor_figures.PARTS,
    *asked.PARTS,
    *registry.PARTS,
    *streams.PARTS,
    *requests.PARTS,
    *lifetime.PARTS,
    *queue.PARTS,
    *evidence.PARTS,
    *machines.PARTS,
)
RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, for CI")
    parser.add_argument("--rounds", type=int, help="default: 3, or 1 when quick")
    parser.add_argument("--only", default="", help="parts whose name has this word")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--dir", type=Path, default=Path(".data"), help="on the disk to measure on"
    )
    options = parser.parse_args()
    parts = [
        part
        for part in PARTS
        if options.only in part.name and (part.quick or not options.quick)
    ]
    if not parts:
        parser.error(f"no part has {options.only!r} in its name")
    rounds = options.rounds or (1 if options.quick else 3)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to clean up
    options.dir.mkdir(mode=0o711, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="bench-", dir=options.dir.absolute()))
    home.chmod(0o711)
    try:
        results = asyncio.run(_measure(parts, home, rounds, quick=options.quick))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(frame.table(results, [one for part in parts for one in part.figures]))
    known = {figure.name for part in PARTS for figure in part.figures}
    frame.write(results, options.output, known)


async def _measure(
    parts: list[frame.Part], home: Path, rounds: int, *, quick: bool
) -> list[frame.Result]:
    async with bench.opened(home, quick=quick) as opened:
        return await frame.run(parts, opened, rounds, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
