"""What evidence is believed by default, as the settings say."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.domain.test_attestation_vectors import DEV
from trustfabric.believed import believed_by
from trustfabric.config import AttestationSettings
from trustfabric.domain.attestation.policy import DEFAULT_POLICY
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.errors import ConfigError

ROOTS = DEV.parent / "roots"


def chosen(**settings: Any) -> AttestationSettings:
    return AttestationSettings(**settings)


def faults_of(**settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        believed_by(chosen(**settings))
    return str(raised.value).splitlines()


def test_unset_it_is_the_default_policy_and_the_makers_roots() -> None:
    believed = believed_by(chosen())

    assert believed.policy == DEFAULT_POLICY
    assert believed.anchors == packaged_anchors()


def test_measurements_are_allowed_beside_the_policy_s() -> None:
    policy = believed_by(chosen(measurements=("ab" * 48,))).policy

    assert policy.kinds.amd_sev_snp.measurements == ("ab" * 48,)
    assert policy.kinds.intel_tdx.mrtd == ("ab" * 48,)


def test_a_measurement_that_nothing_can_show_is_warned_of() -> None:
    (warning,) = believed_by(chosen(measurements=("ab" * 32, "ab" * 48))).warnings

    assert warning.startswith("VM_ATTESTATION_MEASUREMENTS: abab")
    assert "32 bytes" in warning


def test_the_age_of_a_named_policy_is_the_setting_s() -> None:
    assert believed_by(chosen(max_age_s=3600.0)).policy.max_age_s == 3600
    assert believed_by(chosen(max_age_s=0.5)).policy.max_age_s == 1


@pytest.mark.parametrize(("said", "age"), [({}, 60), ({"max_age_s": 900}, 900)])
def test_a_document_s_own_age_stays(
    tmp_path: Path, said: dict[str, int], age: int
) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"id": "mine", "version": 4, **said}))

    policy = believed_by(chosen(policy=str(path), max_age_s=60.0)).policy

    assert (policy.id, policy.version, policy.max_age_s) == ("mine", 4, age)


def test_roots_take_the_place_of_those_that_ship(tmp_path: Path) -> None:
    shutil.copy(ROOTS / "amd_milan_ark.pem", tmp_path)

    anchors = believed_by(chosen(trust_roots=tmp_path)).anchors

    assert list(anchors.amd) == ["Milan"]
    assert anchors.intel is None
    assert anchors.nvidia is None


def test_the_vectors_roots_can_be_given() -> None:
    assert believed_by(chosen(trust_roots=ROOTS)).anchors == packaged_anchors()


def test_every_fault_is_told_with_its_variable(tmp_path: Path) -> None:
    policy, roots = tmp_path / "policy.json", tmp_path / "roots"
    policy.write_text('{"id": "x", "version": 1, "kinds": {"tmp": {}}}')
    roots.mkdir()

    first, second = faults_of(policy=str(policy), trust_roots=roots)

    assert first.startswith("VM_ATTESTATION_POLICY: ")
    assert "kinds.tmp" in first
    assert second.startswith(f"VM_ATTESTATION_TRUST_ROOTS: {roots}: none of ")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("amd_milan_arc.pem", "", "amd_milan_arc.pem: not one of"),
        ("intel_sgx_root_ca.pem", "nothing", "intel_sgx_root_ca.pem"),
        (
            "intel_sgx_root_ca.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "intel_sgx_root_ca.pem",
        ),
    ],
)
def test_a_root_that_is_none_is_told_by_its_file(
    tmp_path: Path, name: str, content: str, fault: str
) -> None:
    (tmp_path / name).write_text(content)

    (told,) = faults_of(trust_roots=tmp_path)

    assert fault in told


def test_intermediates_alone_are_no_roots(tmp_path: Path) -> None:
    shutil.copy(ROOTS / "amd_milan_ask.pem", tmp_path)

    (told,) = faults_of(trust_roots=tmp_path)

    assert "no root" in told


def test_collateral_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "intel").mkdir()
    source = DEV / "intel-tdx" / "v4-uptodate-phala.collateral.json"
    shutil.copy(source, tmp_path / "intel" / "b0c06f000000.json")

    folder = believed_by(chosen(collateral=tmp_path)).collateral

    assert folder is not None
    found = folder.read("intel/b0c06f000000.json")
    assert found is not None
    assert found.content == source.read_bytes()


def test_without_a_folder_there_is_no_collateral() -> None:
    assert believed_by(chosen()).collateral is None


def test_a_file_that_no_evidence_will_find_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "amd").mkdir()
    (tmp_path / "amd" / "milan.crl").write_bytes(b"")

    (warning,) = believed_by(chosen(collateral=tmp_path)).warnings

    assert warning.startswith("VM_ATTESTATION_COLLATERAL: amd/milan.crl: ")


def test_collateral_that_can_t_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "amd").mkdir()
    (tmp_path / "amd" / "Milan.crl").write_bytes(b"rubbish")

    with capture_logs() as logs:
        believed_by(chosen(collateral=tmp_path))

    assert [(log["event"], log["name"]) for log in logs] == [
        ("collateral.unusable", "amd/Milan.crl")
    ]
