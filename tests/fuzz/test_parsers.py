"""Each parser fuzzed by coverage: a minute in all, longer with FUZZ_SECONDS set.

What a longer run finds becomes an example in tests/domain/evidence/test_parsers.py.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.domain.evidence.test_parsers import PARSERS

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60")) / len(PARSERS)
START_S = 50.0
LARGEST = 8192

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(SECONDS + 2 * START_S),
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None,
        reason="atheris has no wheel for this machine",
    ),
]


@pytest.mark.parametrize("name", PARSERS)
def test_nothing_but_a_refusal_comes_of_any_input(name: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(PARSERS[name][1])

    ran = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "tests.fuzz.harness", name),
            f"-max_total_time={max(1, round(SECONDS))}",
            f"-max_len={max(LARGEST, len(PARSERS[name][1]))}",
            "-rss_limit_mb=1024",
            "-timeout=10",
            f"-artifact_prefix={tmp_path}/",
            str(corpus),
        ],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=SECONDS + START_S,
    )

    assert ran.returncode == 0, ran.stderr[-3000:].decode(errors="replace")
    assert b"Done " in ran.stderr
