"""What a policy of GPUs and a verdict make of an accelerator."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from trustfabric.config import GpuPolicy
from trustfabric.domain.accelerators import (
    Attester,
    attesters,
    posture_by,
    posture_now,
)
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.trust import AttestationStatus

NOW = datetime(2026, 11, 24, tzinfo=UTC)
BOOT, ANOTHER = UUID(int=1), UUID(int=2)


def policy(*devices: dict[str, Any], enabled: bool = True) -> dict[str, Any]:
    """Return a policy as it is stored with an instance."""
    read = GpuPolicy.model_validate({"enabled": enabled, "devices": devices})
    return read.model_dump(mode="json")


def test_those_are_asked_that_are_marked() -> None:
    stored = policy(
        {"domain": 1, "bus": "0xa5", "slot": "1f", "function": 7},
        {"bus": "0xa5", "slot": "1e", "attestation": "nvidia-gpu"},
    )

    assert attesters(stored) == (Attester("0000:a5:1e.0", EvidenceKind.NVIDIA_GPU),)


@pytest.mark.parametrize(
    "stored",
    [{}, policy({"bus": 1, "slot": 1, "attestation": "nvidia-gpu"}, enabled=False)],
)
def test_without_gpus_nobody_is_asked(stored: dict[str, Any]) -> None:
    assert attesters(stored) == ()


def test_what_was_stored_before_devices_were_marked_is_read() -> None:
    device = {"domain": 0, "bus": 1, "slot": 0, "function": 0}

    assert attesters({"enabled": True, "devices": [device]}) == ()


def test_a_verdict_that_is_none_changes_no_posture() -> None:
    assert posture_by(AttestationStatus.TRUSTED) == "attested"
    assert posture_by(AttestationStatus.UNTRUSTED) == "untrusted"
    assert posture_by(AttestationStatus.UNKNOWN) is None


@pytest.mark.parametrize(
    ("posture", "by_evidence", "fresh", "running", "now"),
    [
        ("attested", True, True, True, "attested"),
        ("attested", True, False, True, "stale"),
        ("trusted", True, False, True, "stale"),
        ("attested", True, False, False, "attested"),
        ("unknown", True, False, True, "unknown"),
        ("unknown", True, False, False, "attested"),
        ("untrusted", True, True, False, "untrusted"),
        ("tampered", True, True, True, "tampered"),
        ("attested", False, False, True, "attested"),
        ("unknown", False, False, False, "unknown"),
    ],
)
def test_what_a_posture_counts_for(
    posture: str,
    *,
    by_evidence: bool,
    fresh: bool,
    running: bool,
    now: str,
) -> None:
    counted = posture_now(
        posture, by_evidence=by_evidence, fresh=fresh, running=running
    )

    assert counted == now
