"""The launch digest of a SEV-SNP domain, beside sev-snp-measure's own figures."""

import json
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.domain.evidence.snp_platform import MEASUREMENT, NOW, REPORT_DATA, Platform
from tests.domain.test_attestation_vectors import DEV
from tests.drivers.links import a_spec
from trustfabric.domain.attestation.launch import Launch, LaunchDigest
from trustfabric.domain.attestation.model import Check
from trustfabric.domain.attestation.policy import SnpPolicy
from trustfabric.domain.attestation.snp import judge_snp
from trustfabric.domain.evidence import snp
from trustfabric.domain.vms import IsolationTier, SnpLaunch
from trustfabric.drivers.launch_digest import derive, note
from trustfabric.drivers.libvirt_xml import VirtType, domain_xml

AMD_SEV = DEV / "snp-measure" / "ovmf_AmdSev_suffix.bin"
KNOWN = {
    case["name"]: case
    for case in json.loads((DEV / "snp-measure" / "known-answers.json").read_text())
    if case["vmm"] == "QEMU" and case["ovmf_hash"] is None
}
DEBIAN = Path("/usr/share/ovmf/OVMF.fd")

OTHER_TIERS = [each for each in IsolationTier if each != "sev-snp"]
RESET_BLOCK = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
METADATA = "dc886566-984a-4798-a75e-5585a7bf67cc"
HASH_TABLE = "7255371f-3a3b-4b04-927b-1da6efa8d454"
FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
SECTIONS = ((0x80_0000, 0x9000, 1), (0x80_D000, 0x1000, 2), (0x80_E000, 0x1000, 3))
HASHES = (0x80_F000, 0x1000, 0x10)


def u32(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def firmware(
    *, metadata: bool = True, reset: bool = True, hashes: bool = False
) -> bytes:
    """Make an image that looks like OVMF to whoever measures it."""
    size = 0x2000
    sections = (*SECTIONS, HASHES) if hashes else SECTIONS
    body = b"".join(u32(*section) for section in sections)
    described = b"ASEV" + u32(16 + len(body), 1, len(sections)) + body
    entries: Mapping[str, bytes] = {
        **({METADATA: u32(size - 0x100)} if metadata else {}),
        **({RESET_BLOCK: u32(0x80_B004)} if reset else {}),
        **({HASH_TABLE: u32(0x80_FC00, 0x400)} if hashes else {}),
    }
    table = b"".join(data + entry(guid, len(data)) for guid, data in entries.items())
    table += entry(FOOTER, len(table))
    image = bytearray(b"\x90" * size)
    image[0x100 : 0x100 + len(described)] = described
    image[size - 32 - len(table) : size - 32] = table
    return bytes(image)


def entry(guid: str, size: int) -> bytes:
    return (size + 18).to_bytes(2, "little") + uuid.UUID(guid).bytes_le


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "OVMF.fd"
    path.write_bytes(firmware())
    return path


def a_launch(
    snp: SnpLaunch,
    *,
    vcpus: int = 4,
    tier: IsolationTier = IsolationTier.SEV_SNP,
    here: bool = True,
    **options: Any,
) -> Launch | None:
    spec = replace(a_spec(tier=tier), vcpu_count=vcpus, snp=snp)
    domain = domain_xml(spec, virt=VirtType.KVM, runtime="tests")
    return derive(domain, here=here, **options)


def digest(snp: SnpLaunch, **options: Any) -> LaunchDigest:
    launch = a_launch(snp, **options)
    assert launch is not None
    assert launch.digest is not None, launch.why_none
    return launch.digest


def why_none(snp: SnpLaunch, **options: Any) -> str:
    launch = a_launch(snp, **options)
    assert launch is not None
    assert launch.digest is None
    assert note(launch) == f"launch-digest:none:{launch.why_none}"
    return launch.why_none or ""


def by_command_line(ovmf: Path, *more: str, vcpus: int = 4, cpu: str) -> str:
    """Ask sev-snp-measure's own program."""
    ran = subprocess.run(
        [
            *(sys.executable, "-c", "from sevsnpmeasure.cli import main; main()"),
            *("--mode", "snp", "--vcpus", str(vcpus), "--vcpu-type", cpu),
            *("--ovmf", str(ovmf), "--guest-features", "0x1", *more),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return ran.stdout.strip()


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("cpu", ["EPYC-v4", "EPYC-Milan", "EPYC-Genoa"])
def test_it_is_the_figure_of_the_command_line(
    image: Path, cpu: str, vcpus: int
) -> None:
    found = digest(SnpLaunch(cpu_model=cpu, firmware=str(image)), vcpus=vcpus)

    assert found.measurement.hex() == by_command_line(image, vcpus=vcpus, cpu=cpu)
    assert found.boots_kernel is False
    assert found.guest_policy == 0x3_0000


def test_a_kernel_is_measured_with_its_initrd_and_command_line(tmp_path: Path) -> None:
    image, kernel, initrd = (tmp_path / name for name in ("fd", "vmlinuz", "initrd"))
    image.write_bytes(firmware(hashes=True))
    kernel.write_bytes(b"kernel")
    initrd.write_bytes(b"initrd")
    boots = SnpLaunch(
        firmware=str(image),
        kernel=str(kernel),
        initrd=str(initrd),
        cmdline="console=ttyS0 quiet",
    )

    found = digest(boots)

    expected = by_command_line(
        image,
        *("--kernel", str(kernel), "--initrd", str(initrd)),
        *("--append", "console=ttyS0 quiet"),
        cpu="EPYC-v4",
    )
    assert found.measurement.hex() == expected
    assert found.boots_kernel
    assert digest(replace(boots, cmdline="quiet")).measurement != found.measurement
    initrd.write_bytes(b"another")
    assert digest(boots).measurement != found.measurement


@pytest.mark.parametrize("name", KNOWN)
def test_it_is_the_known_answer(name: str, tmp_path: Path) -> None:
    case = KNOWN[name]
    empty = tmp_path / "empty"
    empty.touch()

    found = digest(
        SnpLaunch(
            cpu_model=case["cpu"],
            firmware=str(AMD_SEV),
            kernel=str(empty),
            initrd=str(empty),
            cmdline=case["append"],
        ),
        vcpus=case["vcpus"],
        features=int(case["guest_features"], 0),
    )

    assert found.measurement.hex() == case["expect"]


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs the Debian package ovmf")
def test_debian_s_firmware_has_the_figure_that_was_measured() -> None:
    found = digest(SnpLaunch(firmware=str(DEBIAN)))

    assert found.measurement.hex().startswith("32ac9d7a17d28f7c")
    boots = SnpLaunch(firmware=str(DEBIAN), kernel=str(DEBIAN))
    assert "no table for the kernel" in why_none(boots)


def test_it_says_what_it_was_derived_from(image: Path) -> None:
    launch = a_launch(SnpLaunch(firmware=str(image)))

    assert launch is not None
    assert launch.inputs.keys() == {
        "vcpus",
        "cpu_model",
        "firmware_sha256",
        "guest_features",
        "guest_policy",
    }
    assert note(launch) == "launch-digest:derived:firmware-only"


@pytest.mark.parametrize("tier", OTHER_TIERS)
def test_other_tiers_have_none(image: Path, tier: IsolationTier) -> None:
    assert a_launch(SnpLaunch(firmware=str(image)), tier=tier) is None


def test_what_it_cannot_derive_it_says_why(image: Path, tmp_path: Path) -> None:
    named = SnpLaunch(firmware=str(image))
    folder = str(tmp_path)

    assert "another machine" in why_none(named, here=False)
    assert "chooses the firmware" in why_none(SnpLaunch())
    assert "No such file" in why_none(SnpLaunch(firmware="/none.fd"))
    assert "not a file" in why_none(SnpLaunch(firmware=folder))
    assert "not known" in why_none(replace(named, cpu_model="i486"))
    assert "no table" in why_none(replace(named, kernel=str(image)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (firmware(metadata=False), "no SEV metadata"),
        (firmware(reset=False), "can't be measured"),
        (firmware().replace(b"ASEV", b"XXXX"), "can't be read"),
        (b"", "can't be read"),
        (bytes(4096), "no SEV metadata"),
    ],
)
def test_a_firmware_that_cannot_be_measured_is_named(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "fd"
    path.write_bytes(content)

    assert reason in why_none(SnpLaunch(firmware=str(path)))


def checks(launch: LaunchDigest | None, **policy: Any) -> dict[str, Check]:
    chip = Platform()
    reported = snp.authenticate(
        snp.parse(chip.report(), chip.leaf()), chip.anchors(), NOW
    )
    judged = judge_snp(reported, SnpPolicy(**policy), REPORT_DATA, launch)
    return {check.name: check for check in judged.checks}


def launched(
    measurement: bytes = MEASUREMENT, policy: int = 0x3_0000, *, kernel: bool = True
) -> LaunchDigest:
    return LaunchDigest(
        measurement=measurement, boots_kernel=kernel, guest_policy=policy
    )


def test_a_derived_digest_stands_in_for_reference_values() -> None:
    without, with_it = checks(None), checks(launched())

    assert not without["measurement"].passed
    assert all(check.passed for check in with_it.values())
    assert "firmware-digest" in checks(launched(kernel=False))


def test_the_policy_s_own_measurements_must_hold_beside_it() -> None:
    found = checks(launched(), measurements=("ab" * 48,))

    assert not found["measurement"].passed
    assert found["launch-digest"].passed


def test_a_guest_that_was_launched_otherwise_is_refused() -> None:
    other = checks(launched(bytes(48)), measurements=(MEASUREMENT.hex(),))
    laxer = checks(launched(policy=0xB_0000))

    assert other["measurement"].passed
    assert not other["launch-digest"].passed
    assert other["launch-digest"].code == "measurement-unknown"
    assert not laxer["guest-policy"].passed
