"""The playbooks of docs/executors run as they are pasted, in a real runtime."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.fix_runtime import Served
from tests.http.client import Caller
from tests.http.conftest import Still, a_playbook, a_run, run_becomes
from trustfabric.domain.specs import ExecutorType, check_spec

PAGES = Path(__file__).parents[2] / "docs" / "executors"
KINDS = ("shell", "ansible", "cloud_api")


def pasted(kind: str, mark: str) -> list[dict[str, Any]]:
    text = (PAGES / f"{kind}.md").read_text()
    blocks = re.findall(rf"<!-- {mark} -->\n```json\n(.*?)```", text, re.DOTALL)
    return [json.loads(block) for block in blocks]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_playbook_of_the_docs_works_as_pasted(
    kind: str, runtime: Served, boss: Caller, alice: Caller, vm: Still
) -> None:
    (metadata,) = pasted(kind, "works as pasted")
    here = json.dumps(metadata).replace("127.0.0.1:3000", f"127.0.0.1:{runtime.port}")
    key = f"docs-{kind}-{boss.user}"
    await a_playbook(
        boss,
        key,
        shared=True,
        executor_type=kind,
        approval_required=False,
        metadata=json.loads(here),
    )

    run = await a_run(alice, vm, key)
    run = await run_becomes(alice, run["id"], "completed", "failed", "cancelled")

    path = f"/api/trust/remediation/runs/{run['id']}"
    lines = [one["message"] for one in (await alice.get(f"{path}/logs")).json()]
    assert run["status"] == "completed", (run, lines)
    kept = (await alice.get(f"{path}/artifacts")).json()
    types = {one["artifact_type"] for one in kept}
    assert {
        "shell": {"execution-log", "output", "result"},
        "ansible": {"execution-log", "output", "ansible-events"},
        "cloud_api": {"execution-log", "requests"},
    }[kind] <= types
    assert run["result"]["output"]
    for one in kept:
        content = (await alice.get(f"{path}/artifacts/{one['id']}")).body
        assert len(content) == one["size"]
        assert b"the-demo-secret" not in content


def test_the_other_playbooks_of_the_docs_are_valid() -> None:
    for kind in KINDS:
        for metadata in pasted(kind, "is valid"):
            check_spec(ExecutorType(kind), metadata)
