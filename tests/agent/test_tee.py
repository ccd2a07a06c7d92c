"""Reports of the processor: configfs-tsm's file protocol, sev-guest's structures."""

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from uuid import UUID

import pytest

from tests.agent.fix_tsm import Entry, an_entry
from tests.domain.evidence.snp_platform import NOW, Platform
from tests.domain.test_attestation_vectors import CASES, read
from trustfabric.agent import sev_guest, tsm
from trustfabric.agent.answers import Sources, answer
from trustfabric.agent.main import FAILED, OK, UNREACHABLE, main
from trustfabric.agent.transport import UnansweredError, UnreachableError
from trustfabric.domain.evidence import snp, tdx
from trustfabric.domain.evidence.model import EvidenceKind, Reject
from trustfabric.domain.evidence.snp_table import parse_table

CHIP = Platform()
DATA = bytes(reversed(range(64)))
QUOTE = read(CASES["intel-tdx/v4-uptodate-phala/good"]["quote"])
VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")


def table(*entries: tuple[bytes, bytes]) -> bytes:
    """Make a host's table of certificates."""
    offset, head, body = 24 * (len(entries) + 1), b"", b""
    for guid, data in entries:
        head += guid + (offset + len(body)).to_bytes(4, "little")
        head += len(data).to_bytes(4, "little")
        body += data
    return head + bytes(24) + body


@cache
def report(data: bytes) -> bytes:
    return CHIP.report(changes={0x50: data})


TABLE = table((VCEK.bytes, CHIP.leaf()))


@pytest.fixture
def entry(tmp_path: Path) -> Iterator[Entry]:
    """One that was prepared for the agent."""
    with an_entry(tmp_path / "entry", report, auxblob=TABLE) as prepared:
        yield prepared


def authentic(document: bytes) -> bytes:
    """Return the report data of evidence that holds."""
    held = snp.authenticate(snp.parse_document(document), CHIP.anchors(), NOW)
    return held.claims.report.report_data


def test_a_report_is_made_for_what_was_written(entry: Entry) -> None:
    made = tsm.ask(DATA, entry.path)

    assert entry.inputs == [DATA]
    assert made == tsm.TsmReport("sev_guest", report(DATA), TABLE)


def test_an_answer_of_it_holds(entry: Entry) -> None:
    sources = Sources(tsm=entry.path)

    document = answer(EvidenceKind.AMD_SEV_SNP, DATA, sources)

    assert authentic(document) == DATA


def test_a_report_that_somebody_wrote_between_is_asked_for_again(entry: Entry) -> None:
    entry.disturbances = 2

    tsm.ask(DATA, entry.path)

    assert entry.inputs == [DATA] * 3


def test_an_entry_that_is_never_left_alone_is_given_up(entry: Entry) -> None:
    entry.disturbances = 1000

    with pytest.raises(UnreachableError, match="others write"):
        tsm.ask(DATA, entry.path)


def test_an_entry_of_its_own_is_made_and_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel fills an entry that is made, and empties one that goes."""
    kernel: list[Entry] = []
    mkdir, rmdir = os.mkdir, os.rmdir

    def make(path: Path) -> None:
        mkdir(path)
        kernel.append(Entry(Path(path), report, auxblob=TABLE))
        kernel[-1].begin()

    def remove(path: Path) -> None:
        kernel[-1].end()
        rmdir(path)

    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(os, "rmdir", remove)

    made = tsm.ask(DATA, tmp_path)

    assert made.outblob == report(DATA)
    assert kernel[0].path.name.startswith("trustfabric-")
    assert list(tmp_path.iterdir()) == []


def test_no_interface_is_unreachable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnreachableError):
        tsm.ask(DATA, tmp_path / "none")

    words = ["--tsm", str(tmp_path / "none"), "--sev-guest", str(tmp_path / "no")]
    for kind in ("amd-sev-snp", "intel-tdx"):
        assert main([*words, "quote", DATA.hex(), "--kind", kind]) == UNREACHABLE
    assert main([*words, "quote", DATA.hex()]) == UNREACHABLE
    assert "No such file" in capsys.readouterr().err


def test_a_domain_of_intel_s_answers_with_its_quote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with an_entry(tmp_path / "e", lambda _: QUOTE, provider="tdx_guest") as entry:
        words = ["--tsm", str(entry.path), "--sev-guest", "/none"]
        assert main([*words, "quote", DATA.hex()]) == OK
        refused = main([*words, "quote", DATA.hex(), "--kind", "amd-sev-snp"])

    assert tdx.parse_document(capsys.readouterr().out.strip().encode()).raw == QUOTE
    assert refused == UNREACHABLE


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_has_its_size(entry: Entry, size: int) -> None:
    for ask in (tsm.ask, sev_guest.ask):
        with pytest.raises(ValueError, match="64 bytes"):
            ask(bytes(size), entry.path)


def test_a_host_without_certificates_needs_one_given(
    tmp_path: Path, entry: Entry
) -> None:
    entry.auxblob = b""
    given = tmp_path / "vcek.der"
    given.write_bytes(CHIP.leaf())

    with pytest.raises(UnansweredError, match="--certificate"):
        answer(EvidenceKind.AMD_SEV_SNP, DATA, Sources(tsm=entry.path))
    document = answer(
        EvidenceKind.AMD_SEV_SNP, DATA, Sources(tsm=entry.path, certificate=given)
    )

    assert authentic(document) == DATA


@pytest.mark.parametrize("kind", ["composite-azure-vtpm", "nvidia-gpu", "ear"])
def test_a_kind_that_no_source_makes_is_told(kind: str) -> None:
    with pytest.raises(UnansweredError, match=kind):
        answer(EvidenceKind(kind), DATA, Sources())


# --- the host's table -----------------------------------------------------------------


@pytest.mark.parametrize("guid", [VCEK.bytes, VCEK.bytes_le])
def test_a_table_is_read_in_either_order_of_bytes(guid: bytes) -> None:
    raw = table((bytes(range(16)), b"other"), (guid, b"leaf"), (VLEK.bytes, b"vlek"))

    assert parse_table(raw + bytes(100)) == {"VCEK": b"leaf", "VLEK": b"vlek"}


@pytest.mark.parametrize("raw", [b"", bytes(4096), bytes(10)])
def test_no_table_has_no_certificates(raw: bytes) -> None:
    assert parse_table(raw) == {}


@pytest.mark.parametrize(
    "raw",
    [
        VCEK.bytes + (24).to_bytes(4, "little") + (1).to_bytes(4, "little"),
        VCEK.bytes + b"\xff" * 8,
        (VCEK.bytes + bytes(8)) * 65,
        bytes(70_000),
    ],
)
def test_a_table_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(Reject):
        parse_table(raw)


# --- /dev/sev-guest -------------------------------------------------------------------

HEADER = Path("/usr/include/linux/sev-guest.h")
PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <linux/sev-guest.h>
int main(void) {
  printf("%zu %zu %zu %zu %zu %zu %zu %zu %zu %lu %lu\\n",
    sizeof(struct snp_report_req), sizeof(struct snp_report_resp),
    sizeof(struct snp_ext_report_req), sizeof(struct snp_guest_request_ioctl),
    offsetof(struct snp_report_req, vmpl),
    offsetof(struct snp_ext_report_req, certs_address),
    offsetof(struct snp_ext_report_req, certs_len),
    offsetof(struct snp_guest_request_ioctl, req_data),
    offsetof(struct snp_guest_request_ioctl, exitinfo2),
    (unsigned long)SNP_GET_REPORT, (unsigned long)SNP_GET_EXT_REPORT);
}
"""


@pytest.mark.skipif(
    not HEADER.exists() or shutil.which("cc") is None,
    reason="needs linux/sev-guest.h and a C compiler",
)
def test_structures_and_numbers_are_the_kernel_header_s(tmp_path: Path) -> None:
    (tmp_path / "sizes.c").write_text(PROGRAM)
    subprocess.run(["cc", "-o", "sizes", "sizes.c"], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "sizes"], capture_output=True, check=True)

    ours = (
        ctypes.sizeof(sev_guest.ReportRequest),
        ctypes.sizeof(sev_guest.ReportResponse),
        ctypes.sizeof(sev_guest.ExtendedRequest),
        ctypes.sizeof(sev_guest.GuestRequest),
        sev_guest.ReportRequest.vmpl.offset,
        sev_guest.ExtendedRequest.certs_address.offset,
        sev_guest.ExtendedRequest.certs_len.offset,
        sev_guest.GuestRequest.req_data.offset,
        sev_guest.GuestRequest.fw_error.offset,
        sev_guest.GET_REPORT,
        sev_guest.GET_EXT_REPORT,
    )
    assert tuple(map(int, printed.stdout.split())) == ours


class Firmware:
    """What stands behind the device: reads and writes the agent's memory."""

    def __init__(self, certificates: bytes = TABLE, *, status: int = 0) -> None:
        self.certificates = certificates
        self.status = status
        self.rooms: list[int] = []
        self.error: tuple[int, int] | None = None

    def __call__(self, _: int, number: int, message: sev_guest.GuestRequest) -> int:
        assert number == sev_guest.GET_EXT_REPORT
        assert message.msg_version != 0
        asked = sev_guest.ExtendedRequest.from_address(message.req_data)
        response = sev_guest.ReportResponse.from_address(message.resp_data)
        assert not any(asked.data.rsvd)
        if self.error is not None:
            message.fw_error, message.vmm_error = self.error
            raise OSError(errno.EIO, "Input/output error")
        self.rooms.append(asked.certs_len)
        if asked.certs_len < len(self.certificates):
            asked.certs_len = len(self.certificates)
            message.vmm_error = 1
            raise OSError(errno.EIO, "Input/output error")
        ctypes.memmove(asked.certs_address, self.certificates, len(self.certificates))
        asked.certs_len = len(self.certificates)
        made = report(bytes(asked.data.user_data))
        ctypes.memmove(response.report, made, len(made))
        response.status, response.report_size = self.status, len(made)
        return 0


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "sev-guest"
    path.touch()
    return path


def test_the_device_s_report_and_certificates_are_read(device: Path) -> None:
    made = sev_guest.ask(DATA, device, ioctl=Firmware())

    assert made == sev_guest.SevReport(report(DATA), TABLE)


def test_a_table_that_needs_more_room_gets_it(device: Path) -> None:
    large = table((VCEK.bytes, CHIP.leaf()), (bytes(range(16)), bytes(20_000)))
    firmware = Firmware(large)

    made = sev_guest.ask(DATA, device, ioctl=firmware)

    assert made.certificates == large
    assert firmware.rooms == [16384, 24576]


@pytest.mark.parametrize("size", [70_000, 2**31])
def test_a_table_without_bounds_is_refused(device: Path, size: int) -> None:
    firmware = Firmware(bytes(70_000))

    with pytest.raises(UnreachableError):
        sev_guest.ask(DATA, device, ioctl=firmware)
    assert len(firmware.rooms) == 1


def test_what_the_firmware_says_is_told(device: Path) -> None:
    firmware = Firmware()
    firmware.error = (0x16, 2)

    with pytest.raises(UnreachableError, match="firmware 0x16, host 0x2"):
        sev_guest.ask(DATA, device, ioctl=firmware)
    with pytest.raises(UnreachableError, match="status 0x27"):
        sev_guest.ask(DATA, device, ioctl=Firmware(status=0x27))


def test_a_file_that_is_no_such_device_is_unreachable(
    device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnreachableError):
        sev_guest.ask(DATA, device)

    words = ["--sev-guest", str(device), "--tsm", "/none", "quote", DATA.hex()]
    assert main(words) in (UNREACHABLE, FAILED)
