"""Feeds one parser with what coverage suggests: anything but a refusal is a crash.

python -m tests.fuzz.harness PARSER [libFuzzer's options] [corpus folders]
"""

import sys

import atheris

with atheris.instrument_imports(include=["trustfabric"]):
    from tests.domain.evidence.test_parsers import PARSERS, parses


def main() -> None:
    name = sys.argv.pop(1)
    parser, _ = PARSERS[name]

    def one_input(data: bytes) -> None:
        parses(parser, data)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
