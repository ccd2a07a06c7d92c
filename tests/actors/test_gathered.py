"""Companions that are written by their kind: the ends of many runs in one commit."""

from dataclasses import replace

from tests.actors.test_trust import together
from tests.db.test_ledger import claimed, log, reread
from tests.db.test_runs import an_end
from tests.fix_fabric import Fabric
from trustfabric.actors.changes import Applied, ApplyChange
from trustfabric.db.run_writes import FinishRun
from trustfabric.domain.runs import Run, RunStatus
from trustfabric.domain.trust import Change, Signal
from trustfabric.errors import ConflictError, InvalidError


async def ended(fabric: Fabric, run: Run, finish: FinishRun) -> Applied:
    request = ApplyChange(
        instance_id=run.instance_id,
        change=Change(signal=Signal.ANNOTATED, actor="test", reason="ended"),
        companions=(finish,),
    )
    return await fabric.trust.ask(request, within_s=10)


def poisoned(finish: FinishRun) -> FinishRun:
    exit_ = replace(finish.outcome.exit, detail={"said": "\0"})
    return replace(finish, outcome=replace(finish.outcome, exit=exit_))


async def test_one_end_that_cant_be_stored_is_refused_alone(fabric: Fabric) -> None:
    runs = await claimed(fabric.database, 5)
    ends = [an_end(run, None) for run in runs]
    ends[2] = poisoned(ends[2])

    made = await together(
        fabric, *(ended(fabric, run, end) for run, end in zip(runs, ends, strict=True))
    )

    assert isinstance(made[2], InvalidError)
    for run, one in zip(runs, made, strict=True):
        row = await reread(fabric.database, run)
        posture = await fabric.posture(run.instance_id)
        spoilt = run is runs[2]
        assert row.status == (RunStatus.RUNNING if spoilt else RunStatus.COMPLETED)
        assert posture.version == (1 if spoilt else 2)
        assert spoilt or one.written == (run.id,)


async def test_who_is_refused_among_many_moves_nothing(fabric: Fabric) -> None:
    first, lost, last = runs = await claimed(fabric.database, 3)
    ends = [an_end(run, None) for run in runs]
    ends[1] = replace(ends[1], lease_epoch=lost.lease_epoch + 1)

    made = await together(
        fabric, *(ended(fabric, run, end) for run, end in zip(runs, ends, strict=True))
    )

    assert isinstance(made[1], ConflictError)
    assert (await fabric.posture(lost.instance_id)).version == 1
    assert [text for _, text in await log(fabric.database, lost)][2:] == []
    for run in (first, last):
        assert (await fabric.posture(run.instance_id)).version == 2
        assert [text for _, text in await log(fabric.database, run)][2:] == ["it ended"]


async def test_of_two_ends_of_one_run_in_one_batch_one_is_made(fabric: Fabric) -> None:
    (run,) = await claimed(fabric.database, 1)

    made = await together(
        fabric, *(ended(fabric, run, an_end(run, None)) for _ in range(2))
    )

    assert sorted(isinstance(one, ConflictError) for one in made) == [False, True]
    assert [text for _, text in await log(fabric.database, run)][2:] == ["it ended"]
    assert (await fabric.posture(run.instance_id)).version == 2
