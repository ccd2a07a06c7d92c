"""Single checks of authenticated claims, and the code that a row of them gives."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hmac import compare_digest

from trustfabric.domain.attestation.model import CONSEQUENCES, Check, Code, JsonValue
from trustfabric.domain.evidence.model import Authenticated
from trustfabric.domain.trust import AttestationStatus

_MOST_NAMED = 16
"""Every verdict that fails keeps them, and every list of verdicts shows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Authenticated evidence after its checks."""

    authenticated: Authenticated[object]
    checks: tuple[Check, ...]
    claims: Mapping[str, JsonValue]
    """As they are recorded."""
    advisories: tuple[str, ...] = ()
    until: datetime | None = None
    """How long the policy accepts it; None: as long as its endorsements hold."""
    device: str | None = None
    """Which piece of hardware an accelerator is; it is shown to nobody."""


def check(
    name: str, code: Code, *, passed: bool, expected: str = "", actual: str = ""
) -> Check:
    return Check(name=name, passed=passed, code=code, expected=expected, actual=actual)


def nonce_check(expected: bytes, actual: bytes, least: int) -> Check:
    """Exact length, constant time; a nonce too short to be fresh never passes."""
    enough = len(expected) >= least and len(actual) >= least
    return check(
        "nonce",
        Code.NONCE_MISMATCH,
        passed=enough and bool(actual) and compare_digest(expected, actual),
        expected=expected.hex() if enough else f"at least {least} bytes",
        actual=actual.hex(),
    )


def alternatives(values: Iterable[str]) -> str:
    """Name what is allowed; of very many the first, and how many more."""
    each = list(dict.fromkeys(values))
    more = [f"{len(each) - _MOST_NAMED} more"] if len(each) > _MOST_NAMED else []
    return " or ".join(each[:_MOST_NAMED] + more)


def one_of(name: str, code: Code, allowed: Sequence[str], actual: str) -> Check:
    return check(
        name,
        code,
        passed=actual in allowed,
        expected=alternatives(allowed) or "nothing",
        actual=actual,
    )


def off(name: str, code: Code, *, on: bool, allowed: bool) -> Check:
    """Check a switch that must be off unless the policy allows it on."""
    return check(
        name,
        code,
        passed=allowed or not on,
        expected="on or off" if allowed else "off",
        actual="on" if on else "off",
    )


def measured(name: str, allowed: Sequence[str], actual: str, *, needed: bool) -> Check:
    """Check a measurement; without reference values there is no verdict."""
    if allowed:
        return one_of(name, Code.MEASUREMENT_UNKNOWN, allowed, actual)
    return check(
        name,
        Code.NO_REFERENCE_VALUES,
        passed=not needed,
        expected="a reference value" if needed else "",
        actual=actual,
    )


def code_of(checks: Iterable[Check], advisories: Sequence[str] = ()) -> Code:
    """Of the first failure; what was presented and failed outweighs what is missing.

    What the verifier lacks, a list of revocations for one, hides no failure of the
    attester's.
    """
    failed = [each.code for each in checks if not each.passed]
    if not failed:
        return Code.OK_WITH_ADVISORIES if advisories else Code.OK
    present = [code for code in failed if code is not Code.NO_REFERENCE_VALUES]
    guilty = [
        code
        for code in present
        if CONSEQUENCES[code].status is AttestationStatus.UNTRUSTED
    ]
    return (guilty or present or failed)[0]
