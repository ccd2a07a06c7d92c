"""What a run takes from its playbook: parameters, and whether to act at all."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.actors.fix_remediation import Fabric, a_fabric
from tests.db.fix_runs import ALICE, KEY, add_instance, add_playbook
from trustfabric.actors.dispatch import EnqueueRun
from trustfabric.actors.playbooks import CreatePlaybook, UpdatePlaybook
from trustfabric.db import run_events
from trustfabric.db.session import Database
from trustfabric.domain.ids import OwnerId
from trustfabric.domain.playbooks import Author, PlaybookDraft, PlaybookEdit
from trustfabric.domain.runs import RunStatus
from trustfabric.domain.specs import ExecutorType
from trustfabric.domain.trust import Lifecycle, Tag
from trustfabric.errors import InvalidError

ADMIN = Author(owner_id=OwnerId(1), is_admin=True)
PARAMETERS = {
    "type": "object",
    "properties": {
        "zone": {"type": "string", "pattern": "^[a-z]+$"},
        "depth": {"type": "integer", "default": 3},
    },
    "required": ["zone"],
    "additionalProperties": False,
}
SHOW = 'cat "$TRUSTFABRIC_RUN_FILE"'


@pytest.fixture
async def fabric(database: Database, database_url: str) -> AsyncIterator[Fabric]:
    async with a_fabric(database, database_url) as started:
        yield started


async def enqueued(fabric: Fabric, payload: Any = None) -> Any:
    instance = await add_instance(fabric.database)
    return await fabric.ask(
        EnqueueRun(
            owner=ALICE,
            by=ALICE,
            instance_id=instance,
            playbook=KEY,
            automation_payload=payload,
        )
    )


async def test_parameters_reach_the_program_as_data_with_their_defaults(
    fabric: Fabric,
) -> None:
    metadata = {"script": SHOW, "parameters": PARAMETERS}
    await add_playbook(fabric.database, metadata=metadata)

    run = await enqueued(fabric, {"zone": "west"})
    await fabric.run_of(run.instance_id, lambda r: r.status is RunStatus.COMPLETED)

    assert run.automation_payload == {"zone": "west"}  # as requested
    assert run.playbook_snapshot["parameters"] == {"zone": "west", "depth": 3}
    printed = "".join(await fabric.lines(run.id)).replace(" ", "")
    assert '"depth":3' in printed


async def test_a_payload_that_does_not_fit_is_refused_with_a_pointer(
    fabric: Fabric,
) -> None:
    metadata = {"script": SHOW, "parameters": PARAMETERS}
    await add_playbook(fabric.database, metadata=metadata)

    with pytest.raises(InvalidError) as caught:
        await enqueued(fabric, {"zone": "west", "depth": "x"})

    assert caught.value.facts["pointer"] == "/depth"


async def test_what_needs_parameters_is_not_staged_by_itself(fabric: Fabric) -> None:
    metadata = {"script": SHOW, "parameters": PARAMETERS}
    await add_playbook(fabric.database, metadata=metadata)

    instance = await fabric.quarantined()
    posture = await fabric.until_posture(
        instance, lambda p: p.remediation_state is Tag.NO_PLAYBOOK
    )

    assert posture.lifecycle is Lifecycle.QUARANTINED


async def test_an_observing_run_tells_what_it_would_do_and_does_nothing(
    fabric: Fabric, tmp_path: Any
) -> None:
    touched = tmp_path / "touched"
    metadata = {"command": ["touch", str(touched)], "observe_only": True}
    await add_playbook(fabric.database, metadata=metadata)

    instance = await fabric.quarantined()
    run = await fabric.run_of(instance, lambda r: r.status is RunStatus.COMPLETED)
    posture = await fabric.until_posture(instance, lambda _: fabric.asked)

    assert not touched.exists()
    assert run.result is not None
    assert run.result["would_have"]["argv"] == ["touch", str(touched)]
    async with fabric.database.reading() as conn:
        lines = [line.message for line in await run_events.list_log(conn, None, run.id)]
    assert f'would use argv: ["touch","{touched}"]' in lines
    # Doing nothing restores nothing: it is attested, and only that could.
    assert posture.lifecycle is Lifecycle.REMEDIATING
    assert fabric.asked[0].purpose == "post-run"


async def test_an_edit_changes_no_run_that_waits(fabric: Fabric) -> None:
    playbook = await add_playbook(
        fabric.database, approval_required=True, metadata={"script": "echo old"}
    )
    run = await enqueued(fabric)

    edit = PlaybookEdit(metadata={"script": "echo new"})
    await fabric.playbooks.ask(
        UpdatePlaybook(
            author=ADMIN, playbook_id=playbook.id, edit=edit, expected_version=1
        ),
        within_s=5,
    )

    after = await fabric.read(run.id)
    assert after.spec == {"script": "echo old"}
    assert after.content_sha256 == run.content_sha256


@pytest.mark.parametrize(
    ("executor", "metadata", "word"),
    [
        (ExecutorType.SHELL, {}, "command or script"),
        (ExecutorType.SHELL, {"command": ["a"], "timeout_seconds": -1}, "timeout"),
        (ExecutorType.ANSIBLE, {}, "playbook"),
        (ExecutorType.ANSIBLE, {"playbook": 3}, "playbook"),
        (ExecutorType.CLOUD_API, {"method": "POST"}, "url"),
        (ExecutorType.CLOUD_API, {"method": "POST", "url": "ftp://x"}, "url"),
        (ExecutorType.SHELL, {"script": "a", "parameters": {"type": 3}}, "parameters"),
        (ExecutorType.SHELL, {"script": "a", "observe_only": 1}, "observe_only"),
        (ExecutorType.SHELL, {"script": "a", "retry_limit": -1}, "retry_limit"),
        (ExecutorType.SHELL, {"script": "a", "on_lost": "hope"}, "on_lost"),
    ],
)
async def test_what_could_not_run_is_not_saved(
    fabric: Fabric, executor: ExecutorType, metadata: dict[str, Any], word: str
) -> None:
    draft = PlaybookDraft(
        key="bad",
        display_name="Bad",
        executor_type=executor,
        owner_id=None,
        metadata=metadata,
    )

    with pytest.raises(InvalidError, match=word):
        await fabric.playbooks.ask(
            CreatePlaybook(author=ADMIN, draft=draft), within_s=5
        )
