"""The page's pure modules, tested where they run: in JavaScript."""

import subprocess
from pathlib import Path


def test_the_pure_modules_pass_their_own_tests(node: str) -> None:
    tests = Path(__file__).with_name("modules.test.mjs")

    done = subprocess.run(
        [node, "--test", tests], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout
