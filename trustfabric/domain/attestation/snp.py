"""Appraisal of SEV-SNP reports."""

from collections.abc import Iterator

from trustfabric.domain.attestation.checks import (
    Judged,
    check,
    measured,
    nonce_check,
    off,
    one_of,
)
from trustfabric.domain.attestation.launch import LaunchDigest
from trustfabric.domain.attestation.model import Check, Code, JsonValue
from trustfabric.domain.attestation.policy import SnpPolicy, TcbFloor
from trustfabric.domain.evidence.model import Authenticated
from trustfabric.domain.evidence.snp import SnpClaims
from trustfabric.domain.evidence.snp_report import Tcb

LAUNCH_CHECK, FIRMWARE_CHECK = "launch-digest", "firmware-digest"
"""Against what was derived: with the kernel that is booted, or the firmware only."""
_REPORT_DATA = 64


def judge_snp(
    reported: Authenticated[SnpClaims],
    policy: SnpPolicy,
    report_data: bytes,
    launch: LaunchDigest | None = None,
) -> Judged:
    return Judged(
        authenticated=reported,
        checks=tuple(snp_checks(reported.claims, policy, report_data, launch)),
        claims=snp_view(reported.claims),
    )


def snp_checks(
    claims: SnpClaims,
    policy: SnpPolicy,
    report_data: bytes,
    launch: LaunchDigest | None = None,
) -> Iterator[Check]:
    """Everything after authentication, in the order that names the code."""
    yield nonce_check(report_data, claims.report.report_data, _REPORT_DATA)
    yield from snp_platform_checks(claims, policy, launch)


def snp_platform_checks(
    claims: SnpClaims, policy: SnpPolicy, launch: LaunchDigest | None = None
) -> Iterator[Check]:
    """All but the nonce: what holds for a report that something else makes fresh.

    A launch digest that was derived for this guest must be the report's; the
    policy's own measurements, where it has some, must hold beside it.
    """
    yield off("debug", Code.DEBUG_ENABLED, on=claims.debug, allowed=policy.allow_debug)
    yield off(
        "migration",
        Code.POLICY_VIOLATION,
        on=claims.migratable,
        allowed=policy.allow_migrate,
    )
    yield check(
        "vmpl",
        Code.POLICY_VIOLATION,
        passed=claims.report.vmpl <= policy.max_vmpl,
        expected=f"at most {policy.max_vmpl}",
        actual=str(claims.report.vmpl),
    )
    signers = ("VCEK", "VLEK") if policy.vlek == "allow" else ("VCEK",)
    yield one_of("signer", Code.POLICY_VIOLATION, signers, claims.report.signer)
    yield one_of("product", Code.POLICY_VIOLATION, policy.products, claims.product)
    yield check(
        "revocation",
        Code.EXPIRED,
        passed=claims.revocation_checked or not policy.require_crl,
        expected="a revocation list" if policy.require_crl else "",
        actual="a revocation list" if claims.revocation_checked else "none",
    )
    floor = policy.min_tcb.get(claims.product)
    if floor is not None:
        yield from _tcb_checks(claims, floor)
    yield measured(
        "measurement",
        policy.measurements,
        claims.report.measurement.hex(),
        needed=policy.measured and launch is None,
    )
    if launch is not None:
        yield one_of(
            LAUNCH_CHECK if launch.boots_kernel else FIRMWARE_CHECK,
            Code.MEASUREMENT_UNKNOWN,
            (launch.measurement.hex(),),
            claims.report.measurement.hex(),
        )
        yield check(
            "guest-policy",
            Code.POLICY_VIOLATION,
            passed=claims.report.policy == launch.guest_policy,
            expected=f"{launch.guest_policy:#x}",
            actual=f"{claims.report.policy:#x}",
        )


def _tcb_checks(claims: SnpClaims, floor: TcbFloor) -> Iterator[Check]:
    """Check what is committed too: down to there the host can roll back."""
    least = Tcb(floor.fmc, floor.bl, floor.tee, floor.snp, floor.ucode)
    for name, tcb in (
        ("reported-tcb", claims.reported_tcb),
        ("committed-tcb", claims.committed_tcb),
    ):
        yield check(
            name,
            Code.TCB_OUT_OF_DATE,
            passed=tcb.reaches(least),
            expected=str(least),
            actual=str(tcb),
        )


def snp_view(claims: SnpClaims) -> dict[str, JsonValue]:
    """Return the claims as they are recorded."""
    report = claims.report
    return {
        "product": claims.product,
        "report_version": report.version,
        "report_id": report.report_id.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "guest_svn": report.guest_svn,
        "guest_policy": f"{report.policy:#x}",
        "platform_info": f"{report.platform_info:#x}",
        "vmpl": report.vmpl,
        "signer": report.signer,
        "debug": claims.debug,
        "migratable": claims.migratable,
        "reported_tcb": str(claims.reported_tcb),
        "committed_tcb": str(claims.committed_tcb),
        "current_tcb": str(claims.current_tcb),
        "launch_tcb": str(claims.launch_tcb),
        "revocation_checked": claims.revocation_checked,
    }
