"""What an attestation result affirms: only what a check stands behind."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from trustfabric.domain.attestation.ear_result import (
    LONGEST,
    Recorded,
    result_of,
    trust_vector,
    worst,
)
from trustfabric.domain.attestation.model import CONSEQUENCES, Code, Tier
from trustfabric.domain.trust import AttestationStatus, Lifecycle
from trustfabric.errors import ConflictError

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def passed(name: str, expected: str = "4d") -> dict[str, Any]:
    return {"name": name, "result": "pass", "expected": expected}


def provenance(kind: str = "amd-sev-snp", code: str = "ok", **more: Any) -> Any:
    return {
        "kind": kind,
        "code": code,
        "claims": {"report_version": 3},
        "checks": [passed("measurement")],
        **more,
    }


def tier(document: Any) -> Tier:
    return worst(trust_vector(document, simulated=False))


@pytest.mark.parametrize(
    "code", [code for code in Code if CONSEQUENCES[code].status != "trusted"]
)
@pytest.mark.parametrize("software", [True, False])
def test_what_was_not_trusted_never_affirms(code: Code, *, software: bool) -> None:
    untrusted = CONSEQUENCES[code].status == "untrusted"
    refused = recorded(
        provenance=provenance(code=code.value, claims={"software": software}),
        status=CONSEQUENCES[code].status,
        deadline=None,
    )

    result = result_of(refused, NOW, issuer="us", nonce=None)

    assert result.status is (Tier.CONTRAINDICATED if untrusted else Tier.NONE)
    vector = trust_vector(refused.provenance, simulated=software)
    assert not software or 2 not in vector.values()


@pytest.mark.parametrize("kind", ["amd-sev-snp", "intel-tdx", "composite-azure-vtpm"])
def test_confidential_hardware_affirms(kind: str) -> None:
    vector = trust_vector(provenance(kind), simulated=False)

    assert vector["runtime-opaque"] == 2
    assert worst(vector) is Tier.AFFIRMING


def test_a_tpm_says_nothing_of_opacity() -> None:
    document = provenance("tpm", checks=[passed("pcr-sha256-0")])

    assert "runtime-opaque" not in trust_vector(document, simulated=False)
    assert tier(document) is Tier.AFFIRMING


def test_a_software_tpm_is_a_warning_though_the_policy_allows_it() -> None:
    document = provenance(
        "tpm", claims={"software": True}, checks=[passed("pcr-sha256-0")]
    )

    vector = trust_vector(document, simulated=False)

    assert vector["hardware"] == 32
    assert "instance-identity" not in vector
    assert worst(vector) is Tier.WARNING


def test_a_simulated_vm_affirms_nothing() -> None:
    assert trust_vector(provenance(), simulated=True) == {}
    assert worst({}) is Tier.NONE


@pytest.mark.parametrize(
    ("kind", "check", "affirmed"),
    [
        ("amd-sev-snp", passed("measurement"), True),
        ("amd-sev-snp", passed("launch-digest"), True),
        ("amd-sev-snp", passed("firmware-digest"), False),
        ("amd-sev-snp", passed("measurement", expected=""), False),
        ("amd-sev-snp", passed("vmpl"), False),
        ("amd-sev-snp", passed("measurement") | {"result": "fail"}, False),
        ("tpm", passed("pcr-sha384-7"), True),
        ("tpm", passed("pcr-bank"), False),
        ("intel-tdx", passed("mrtd"), False),
        ("intel-tdx", passed("rtmr-1"), True),
        ("composite-azure-vtpm", passed("measurement"), False),
        ("composite-azure-vtpm", passed("mrtd"), False),
        ("composite-azure-vtpm", passed("pcr-sha256-4"), True),
    ],
)
def test_executables_are_affirmed_where_they_were_compared(
    kind: str, check: dict[str, Any], *, affirmed: bool
) -> None:
    vector = trust_vector(provenance(kind, checks=[check]), simulated=False)

    assert ("executables" in vector) is affirmed


def test_firmware_is_no_executable_though_a_policy_allows_its_digest() -> None:
    checks = [passed("measurement"), passed("firmware-digest")]

    vector = trust_vector(provenance(checks=checks), simulated=False)

    assert "executables" not in vector
    assert vector["configuration"] == 2


def test_a_provider_s_key_says_nothing_of_the_chip() -> None:
    document = provenance(claims={"signer": "VLEK"})

    assert "instance-identity" not in trust_vector(document, simulated=False)


def test_nor_does_one_that_signed_a_part_of_the_evidence() -> None:
    document = provenance(
        "composite-azure-vtpm", claims={"hardware": {"signer": "VLEK"}}
    )

    assert "instance-identity" not in trust_vector(document, simulated=False)


def test_where_nothing_is_known_of_the_hardware_nothing_is_affirmed_of_it() -> None:
    document = provenance("tpm", claims={}, checks=[passed("pcr-sha256-0")])

    vector = trust_vector(document, simulated=False)

    assert Tier.of(vector["hardware"]) is Tier.WARNING
    assert "instance-identity" not in vector


def test_advisories_are_a_warning() -> None:
    document = provenance(code="ok-with-advisories", advisories=["OutOfDate"])

    assert tier(document) is Tier.WARNING


def recorded(**changes: Any) -> Recorded:
    fields: dict[str, Any] = {
        "instance": "vm-1",
        "provenance": provenance(),
        "status": AttestationStatus.TRUSTED,
        "deadline": NOW + timedelta(seconds=60),
        "simulated": False,
        "newest": True,
        "same_boot": True,
        "lifecycle": Lifecycle.RESTORED,
    }
    return Recorded(**fields | changes)


def test_a_result_never_outlives_its_verdict() -> None:
    soon = result_of(recorded(), NOW, issuer="us", nonce=None)
    late = result_of(
        recorded(deadline=NOW + timedelta(days=1)), NOW, issuer="us", nonce=None
    )

    assert soon.expires_at == NOW + timedelta(seconds=60)
    assert late.expires_at == NOW + LONGEST
    assert "eat_nonce" not in soon.claims


@pytest.mark.parametrize(
    "changes",
    [
        {"newest": False},
        {"same_boot": False},
        {"deadline": None},
        {"deadline": NOW},
        *({"lifecycle": each} for each in Lifecycle if each != "restored"),
    ],
)
def test_what_has_gone_by_has_no_result(changes: dict[str, Any]) -> None:
    with pytest.raises(ConflictError):
        result_of(recorded(**changes), NOW, issuer="us", nonce=None)


def test_distrust_is_told_whatever_the_lifecycle() -> None:
    refused = recorded(
        provenance=provenance(code="revoked"),
        status=AttestationStatus.UNTRUSTED,
        deadline=None,
        lifecycle=Lifecycle.QUARANTINED,
    )

    result = result_of(refused, NOW, issuer="us", nonce="12345678")

    assert result.status is Tier.CONTRAINDICATED
    assert result.claims["eat_nonce"] == "12345678"
