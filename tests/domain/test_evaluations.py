"""Certifications: notes and edits."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from trustfabric.domain.evaluations import (
    NOTES_KEPT,
    NOTES_LIMIT,
    Certification,
    CertificationId,
    CertificationStatus,
    Edit,
    edited,
    with_note,
)
from trustfabric.domain.ids import ServerId

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def a_certification(**changes: Any) -> Certification:
    row = Certification(
        id=CertificationId(1),
        server_id=ServerId(1),
        artifact_id=None,
        tier="standard",
        policy_requirement="runtime-attestation",
        manifest_digest=None,
        status=CertificationStatus.PENDING,
        evidence=None,
        evidence_source=None,
        evidence_lineage=None,
        valid_from=None,
        valid_until=None,
        cadence_s=None,
        next_refresh_at=NOON,
        governance_notes=None,
        blocked_reason=None,
        last_attestation_status=None,
        fallback_launched_at=None,
        remediation_attempts=0,
        version=2,
        created_at=NOON,
        updated_at=NOON,
    )
    return replace(row, **changes)


def test_a_note_is_a_line_with_its_time() -> None:
    text = with_note("by hand", "refresh resumed", NOON)

    assert text == "by hand\n2026-01-01T12:00:00Z scheduler: refresh resumed"


def test_the_schedulers_oldest_notes_go_and_peoples_stay() -> None:
    text = "by hand"
    for number in range(100):
        text = with_note(text, f"note {number}", NOON)

    lines = text.splitlines()
    assert lines[0] == "by hand"
    assert len(lines) == 1 + NOTES_KEPT
    assert lines[-1].endswith("note 99")


def test_a_note_is_capped() -> None:
    assert len(with_note(None, "x" * 9000, NOON)) == NOTES_LIMIT


def test_an_edit_changes_what_it_names() -> None:
    before = a_certification(governance_notes="old", evidence_source={"a": 1})

    after = edited(before, Edit(values={"governance_notes": None}), NOON)

    assert after == replace(before, governance_notes=None)


def test_a_shorter_cadence_counts_from_now() -> None:
    before = a_certification(next_refresh_at=NOON + 24 * HOUR)

    after = edited(before, Edit(values={"cadence_s": 60}), NOON)

    assert after.next_refresh_at == NOON + timedelta(seconds=60)


def test_a_longer_cadence_puts_nothing_off() -> None:
    before = a_certification(next_refresh_at=NOON)

    assert (
        edited(before, Edit(values={"cadence_s": 9999}), NOON).next_refresh_at == NOON
    )


def test_an_edit_of_a_new_one_leaves_it_due() -> None:
    before = a_certification(next_refresh_at=None, version=1)

    noted = edited(before, Edit(values={"governance_notes": "x"}), NOON)
    cleared = edited(before, Edit(values={"next_refresh_at": None}), NOON)

    assert noted.next_refresh_at == NOON
    assert cleared.next_refresh_at is None
