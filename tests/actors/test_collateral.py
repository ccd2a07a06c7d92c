"""SEV-SNP and TDX by the runtime's own path, with a folder of collateral."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.domain.evidence.snp_platform import MEASUREMENT, Platform
from tests.domain.test_attestation_vectors import CASES, read
from tests.fix_fabric import ASK_S, count, until
from tests.fix_machines import SETTINGS, Machines, some_machines
from trustfabric.actors.attestation import Attest, InFlight
from trustfabric.actors.policies import stored_of
from trustfabric.db import verdicts
from trustfabric.db.session import Database
from trustfabric.db.vms import Instance
from trustfabric.domain.attestation.model import Code
from trustfabric.domain.attestation.policy import (
    AppraisalPolicy,
    Kinds,
    SnpPolicy,
    TdxPolicy,
)
from trustfabric.domain.attestation.stored import dump, judge_again, parse_stored
from trustfabric.domain.events import TrustEvent
from trustfabric.domain.evidence import snp, tdx
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.domain.ids import AttestationId
from trustfabric.domain.trust import AttestationStatus, Lifecycle
from trustfabric.drivers.collateral import CollateralFolder
from trustfabric.supervision import ManualClock

pytestmark = pytest.mark.libvirt

MILAN = Platform()
ANCHORS = MILAN.anchors()
CHIP_ID, OTHER_ID = MILAN.chip_id.hex(), b"\xd2" * 64
CRL = "amd/Milan.crl"
SNP = {"attestation": {"kind": "amd-sev-snp", "source": "virtio"}}
TDX = {"attestation": {"kind": "intel-tdx", "source": "virtio"}}
UP_TO_DATE = CASES["intel-tdx/v4-uptodate-phala/good"]
MINUTES = timedelta(minutes=1)


class Chip:
    """Answers with a report for the very challenge."""

    async def collect(self, _name: str, extra_data: bytes) -> bytes:
        report = MILAN.report(changes={0x050: extra_data})
        return snp.write_document(report, MILAN.leaf())


@dataclass
class Recording:
    """Answers with a real quote, whatever it is asked: its nonce is another's."""

    case: dict[str, Any]

    async def collect(self, _name: str, _extra_data: bytes) -> bytes:
        return tdx.write_document(read(self.case["quote"]))


@dataclass
class World:
    database: Database
    database_url: str
    tpm_dir: Path
    folder: Path

    @asynccontextmanager
    async def machines(
        self,
        source: Any,
        anchors: Anchors,
        start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        **tdx_policy: Any,
    ) -> AsyncIterator[Machines]:
        kinds = Kinds(
            amd_sev_snp=SnpPolicy(measurements=(MEASUREMENT.hex(),)),
            intel_tdx=TdxPolicy(**tdx_policy),
        )
        settings = replace(
            SETTINGS,
            policy=AppraisalPolicy(id="test", version=1, kinds=kinds),
            anchors=anchors,
            collateral=CollateralFolder(self.folder, anchors).read,
        )
        async with some_machines(
            self.database,
            self.database_url,
            self.tpm_dir,
            clock=ManualClock(start),
            sources={"virtio": source},
            settings=settings,
        ) as machines:
            yield machines

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)


@pytest.fixture
def world(
    database: Database, database_url: str, tpm_dir: Path, tmp_path: Path
) -> World:
    (tmp_path / "amd").mkdir()
    (tmp_path / "intel").mkdir()
    return World(database, database_url, tpm_dir, tmp_path)


async def attested(machines: Machines, instance: Instance) -> TrustEvent:
    """Challenge it; return what that was to its trust."""

    async def look() -> bool | None:
        busy = await machines.attestation.ask(InFlight(), within_s=ASK_S)
        return not busy or None

    await until(look, "the appraisals to be done")
    machines.attestation.tell(Attest(instance.id, "manual"))
    await until(look, "the appraisals to be done")
    return (await machines.history(instance.id))[-1]


async def stored(machines: Machines, event: TrustEvent) -> verdicts.Stored:
    assert event.attestation_id is not None
    async with machines.database.reading() as conn:
        found = await verdicts.get_stored(
            conn, None, AttestationId(event.attestation_id)
        )
    assert found is not None
    return found


async def test_a_revocation_that_is_put_into_the_folder_quarantines_what_runs(
    world: World,
) -> None:
    world.write(CRL, MILAN.crl())
    async with world.machines(Chip(), ANCHORS) as machines:
        instance = await machines.started(**SNP)
        await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)

        world.write(CRL, MILAN.crl(101))
        event = await attested(machines, instance)

        assert event.lifecycle is Lifecycle.QUARANTINED
        assert (await stored(machines, event)).code == Code.REVOKED


async def test_the_deadline_is_not_beyond_the_list_s_own_end(world: World) -> None:
    async with world.machines(Chip(), ANCHORS) as machines:
        ends = machines.clock.now() + 2 * MINUTES
        world.write(CRL, MILAN.crl(next_update=ends))

        instance = await machines.started(**SNP)
        row = await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)

        assert row.freshness_deadline == ends


@pytest.mark.parametrize(
    ("crl", "code"),
    [
        (MILAN.crl(role="ask"), Code.VERIFIER_FAULT),
        (b"rubbish", Code.VERIFIER_FAULT),
        (
            MILAN.crl(next_update=datetime(2025, 12, 1, tzinfo=UTC)),
            Code.EXPIRED,
        ),
    ],
    ids=["forged", "rubbish", "expired"],
)
async def test_a_list_that_can_t_count_neither_trusts_nor_quarantines(
    world: World, crl: bytes, code: Code
) -> None:
    world.write(CRL, crl)
    async with world.machines(Chip(), ANCHORS) as machines:
        instance = await machines.started(**SNP)
        await machines.until_posture(
            instance.id, attestation_status=AttestationStatus.UNKNOWN
        )

        event = await attested(machines, instance)

        assert event.lifecycle is Lifecycle.SUSPECT
        assert (await stored(machines, event)).code == code


async def test_a_verdict_is_come_to_again_though_the_folder_changed_since(
    world: World,
) -> None:
    world.write(CRL, MILAN.crl(101))
    async with world.machines(Chip(), ANCHORS) as machines:
        instance = await machines.started(**SNP)
        await machines.until_posture(instance.id, lifecycle=Lifecycle.QUARANTINED)
        event = await attested(machines, instance)
        kept = await stored(machines, event)
        world.write(CRL, MILAN.crl())

        document = dump(stored_of(kept))
        again = judge_again(parse_stored(document), ANCHORS)

        assert (kept.code, again.code) == (Code.REVOKED, Code.REVOKED)


async def test_collateral_is_kept_once_however_many_verdicts_rest_on_it(
    world: World,
) -> None:
    world.write(CRL, MILAN.crl())
    async with world.machines(Chip(), ANCHORS) as machines:
        instance = await machines.started(**SNP)
        await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)
        await attested(machines, instance)
        event = await attested(machines, instance)

        kept = "SELECT count(*) FROM attestation_bases WHERE document ? 'content'"
        resting = (
            "SELECT count(*) FROM runtime_vm_attestations"
            " WHERE inputs ->> 'collateral' IS NOT NULL"
        )
        assert event.status is AttestationStatus.TRUSTED
        assert await count(machines.database, kept) == 1
        assert await count(machines.database, resting) >= 3


async def test_a_real_quote_is_authenticated_with_the_collateral_of_its_platform(
    world: World,
) -> None:
    start = datetime.fromisoformat(UP_TO_DATE["now"])
    mrtd = tuple(UP_TO_DATE["policy"]["mrtd"])
    async with world.machines(
        Recording(UP_TO_DATE), packaged_anchors(), start, mrtd=mrtd
    ) as machines:
        instance = await machines.started(**TDX)
        await machines.until_posture(
            instance.id, attestation_status=AttestationStatus.UNKNOWN
        )
        without = await stored(machines, await attested(machines, instance))
        world.write("intel/b0c06f000000.json", read(UP_TO_DATE["collateral"]))

        kept = await stored(machines, await attested(machines, instance))

        # All that keeps it from trust is that it was recorded for another challenge.
        async with machines.database.reading() as conn:
            told = await verdicts.get_verdict(conn, None, kept.id)
        assert told is not None
        assert (without.code, kept.code) == (Code.VERIFIER_FAULT, Code.NONCE_MISMATCH)
        assert [note.split(" expected")[0] for note in told.notes] == [
            "nonce-mismatch: nonce"
        ]
        assert told.claims is not None
        assert told.claims["mrtd"] == mrtd[0]


class OtherChip(Chip):
    """Its report says that it is another chip than the certificate's."""

    async def collect(self, _name: str, extra_data: bytes) -> bytes:
        changes = {0x050: extra_data, 0x1A0: OTHER_ID}
        return snp.write_document(MILAN.report(changes=changes), MILAN.leaf())


async def test_which_chip_it_was_is_told_by_a_name_that_only_we_can_give(
    world: World,
) -> None:
    async with world.machines(OtherChip(), ANCHORS) as machines:
        instance = await machines.started(**SNP)
        await machines.until_posture(instance.id, lifecycle=Lifecycle.QUARANTINED)
        events = [await attested(machines, instance) for _ in range(2)]

        async with machines.database.reading() as conn:
            rows = await verdicts.list_verdicts(
                conn, None, verdicts.Filter(), before=None, limit=9
            )
        shown = [*(row.notes for row in rows), *(each.provenance for each in events)]
        assert {row.code for row in rows} == {Code.ENDORSEMENT_MISMATCH}
        assert all(name not in repr(shown) for name in (OTHER_ID.hex(), CHIP_ID))
        assert len({note for row in rows for note in row.notes}) == 1
        again = judge_again(stored_of(await stored(machines, events[0])), ANCHORS)
        assert again.checks[0].actual == OTHER_ID.hex()
