"""What is remembered of an attester between two challenges, and what that tells.

Its TPM's clock: it can't go back, and a rise of its resets is a boot that nobody
told us of. Its silence: whoever doesn't answer is asked ever more seldom.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from trustfabric.domain.attestation.launch import LaunchDigest
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.tpm import recorded_clock
from trustfabric.domain.evidence.model import Code
from trustfabric.domain.evidence.tpm2 import TpmClock

ASKED_AFRESH: Final = frozenset({"boot", "manual", "release"})
"""Purposes of a challenge that forget how long an attester was silent."""

_PATIENT: Final = "post-run"
"""Retried at a steady pace: these attempts are bounded by their number."""

_MOST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What earlier challenges of one instance left behind."""

    clock: TpmClock | None = None
    """The newest that its TPM showed in fresh evidence."""
    boot_id: str | None = None
    """Of the boot in which it showed that."""
    misses: int = 0
    """Challenges in a row that nothing answered."""
    launch: LaunchDigest | None = None
    """The launch digest that its guest must report."""

    def saw_reboot(self, appraisal: Appraisal, boot_id: str) -> bool:
        """Tell whether its TPM was reset within what we hold for one boot."""
        now = fresh_clock(appraisal)
        return (
            now is not None
            and self.clock is not None
            and self.boot_id == boot_id
            and self.clock.key_id == now.key_id
            and now.resets_since(self.clock) > 0
        )


NOTHING: Final = Memory()


def fresh_clock(appraisal: Appraisal) -> TpmClock | None:
    """Return the clock that authenticated evidence for our nonce shows.

    None where there is none, or it lies before what we remember: a replay or a TPM
    that was put back must not make us forget.
    """
    verdicts = {check.name: check.passed for check in appraisal.checks}
    if not verdicts.get("nonce") or not verdicts.get("tpm-clock", True):
        return None
    claims = appraisal.claims.get("tpm", appraisal.claims)
    clock = recorded_clock(claims) if isinstance(claims, Mapping) else None
    key = appraisal.endorsements.get("ak_sha256")
    return clock and replace(clock, key_id=str(key))


def is_silence(appraisal: Appraisal) -> bool:
    return appraisal.code is Code.UNREACHABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How soon a silent attester is asked again."""

    first: timedelta
    longest: timedelta
    margin: timedelta
    """Before the freshness deadline, for a last question and its answer."""

    def ask_after(
        self,
        misses: int,
        purpose: str,
        now: datetime,
        deadline: datetime | None,
        jitter: float,
    ) -> datetime:
        """Return until when it is left alone after so many misses in a row.

        Doubled each time up to the longest; `jitter` (0 to 1) takes up to a quarter
        off, so that a fleet that fell silent together isn't asked together. Never
        beyond the last moment at which an answer could still keep it fresh.
        """
        doublings = 0 if purpose == _PATIENT else min(misses, _MOST) - 1
        pause = min(self.longest, self.first * 2.0**doublings) * (1 - jitter / 4)
        until = now + pause
        if deadline is None or deadline <= now:
            return until
        return max(now, min(until, deadline - self.margin))
