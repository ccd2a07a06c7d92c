"""The matrix against a real runtime: what passes, what fails, what is left behind."""

import asyncio
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from trustfabric.scenarios.runtime import MCPCTL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def experiment(kill: str, during: str) -> dict[str, Any]:
    action = {"kill": kill, "during": during}
    return {"action": action, "recovery_seconds": 90}


def scenario(name: str, kind: str, *tenants: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "tag": f"validation:{name}",
        "kind": kind,
        "tenants": tenants or ("solo",),
        **more,
    }


async def run(folder: Path, *scenarios: dict[str, Any]) -> tuple[int, str]:
    documents = folder / "documents"
    documents.mkdir()
    (documents / "all.json").write_text(json.dumps({"scenarios": scenarios}))
    process = await asyncio.create_subprocess_exec(
        *MCPCTL,
        *("scenarios", "run", "--dir", str(documents), "--output", str(folder / "out")),
        env={**os.environ, "DATABASE_URL": "", "PYTHONWARNINGS": "error"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_every_kind_passes_and_the_run_leaves_its_papers(tmp_path: Path) -> None:
    code, out = await run(
        tmp_path,
        scenario("isolation", "tenant-isolation", "one", "two"),
        scenario("approvals", "concurrent-approvals", "one"),
        scenario("outage", "executor-outage-resumption", "two"),
        scenario(
            "kill-run",
            "actor-kill",
            "one",
            experiment=experiment("fabric/remediation/runs/run:{run}", "run"),
        ),
        scenario(
            "kill-process",
            "process-kill",
            "two",
            experiment=experiment("runtime", "verify"),
        ),
    )

    assert code == 0, out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    verdicts = {
        one["name"]: (one["verdict"], len(one["results"]))
        for one in manifest["scenarios"][0]["scenarios"]
    }
    assert verdicts == {
        "isolation": ("pass", 2),
        "approvals": ("pass", 1),
        "outage": ("pass", 1),
        "kill-run": ("pass", 1),
        "kill-process": ("pass", 1),
    }
    assert "validation:isolation" in manifest["validation_tags"]
    transcript = (tmp_path / "out" / "remediation-stream.jsonl").read_bytes()
    told = manifest["stream_transcript"]
    assert told["sha256"] == hashlib.sha256(transcript).hexdigest()
    events = [json.loads(line) for line in transcript.splitlines()]
    assert told["events"] == len(events)
    tags = {tag for event in events for tag in event["manifest_tags"]}
    assert {"validation:isolation::one", "validation:isolation::two"} <= tags
    assert {"validation:approvals::one", "validation:outage::two"} <= tags


async def test_a_scenario_that_fails_is_named_and_told_by_the_exit_code(
    tmp_path: Path,
) -> None:
    code, out = await run(
        tmp_path,
        scenario("good", "concurrent-approvals"),
        scenario("bad", "actor-kill", experiment=experiment("fabric/nobody", "launch")),
    )

    assert code == 1, out
    assert "no actor fabric/nobody" in out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    good, bad = manifest["scenarios"][0]["scenarios"]
    assert (good["verdict"], bad["verdict"]) == ("pass", "fail")
    assert "no actor fabric/nobody" in bad["results"][0]["faults"][0]


async def test_an_unknown_name_is_refused_before_anything_starts() -> None:
    process = await asyncio.create_subprocess_exec(
        *(*MCPCTL, "scenarios", "run", "nonsense"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert (process.returncode, err) == (2, b"nonsense: no such scenario\n")


async def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "out" / "data" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.touch()
    code, out = await run(tmp_path, scenario("good", "concurrent-approvals"))
    assert code == 2
    assert "holds something that is not ours" in out
    assert precious.exists()


DEMO = """
import sys
from pathlib import Path
from trustfabric.scenarios.demo import Pace, main
sys.exit(main(Path(sys.argv[1]), Pace(between=0.1, approval=0.3)))
"""


async def watch_demo(folder: Path, until: str, times: int) -> list[str]:
    """Run the demo until it has said this so often, then end it as Ctrl-C does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DEMO, str(folder)),
        env={**os.environ, "DATABASE_URL": "", "BIND_PORT": "0"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines: list[str] = []
    while sum(until in line for line in lines) < times:
        line = (await process.stdout.readline()).decode()
        assert line, "".join(lines)
        lines.append(line)
    process.terminate()
    rest = (await process.stdout.read()).decode()
    assert await process.wait() == 0, rest
    return lines


async def test_the_demo_lives_the_story_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    first = await watch_demo(tmp_path, "fresh evidence is good", 3)
    for word in ("listening:", "dashboard:", "shell:", "token:"):
        assert any(line.startswith(word) for line in first)
    assert sum("created for" in line for line in first) == 5
    assert any("quarantined" in line for line in first)

    second = await watch_demo(tmp_path, "fresh evidence is good", 2)
    assert not any("created for" in line for line in second)
    assert not (tmp_path / "postgres" / "pg" / "postmaster.pid").exists()


async def test_the_demo_ends_with_its_runtime(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DEMO, str(tmp_path)),
        env={**os.environ, "DATABASE_URL": "", "BIND_PORT": "0"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    while b"restored" not in await process.stdout.readline():
        pass
    for child in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for pid in child.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"the runtime is gone" in err
