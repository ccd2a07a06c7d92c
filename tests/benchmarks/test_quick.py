"""The benchmarks themselves, as a quick run has them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import PARTS

pytestmark = [pytest.mark.slow, pytest.mark.libvirt, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]


def test_a_quick_run_measures_every_figure_of_its_parts(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    home = tmp_path / "home"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--quick"),
            *("--output", str(results), "--dir", str(home)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    measured = {one["name"] for one in json.loads(results.read_text("utf-8"))}
    assert measured == {
        figure.name for part in PARTS if part.quick for figure in part.figures
    }
