"""Reports through /dev/sev-guest, for kernels without configfs-tsm.

Structures and numbers are those of linux/sev-guest.h.
"""

import ctypes
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trustfabric.agent.transport import UnreachableError

DEVICE: Final = Path("/dev/sev-guest")

MESSAGE_VERSION = 1
REPORT_DATA = 64
REPORT = 0x4A0
CERTIFICATES = 16 * 1024
_MAX_CERTIFICATES = 64 * 1024
_PAGE = 4096
_INVALID_LENGTH = 1
"""What the host says where the room for certificates is too small."""


class ReportRequest(ctypes.Structure):
    """snp_report_req."""

    _fields_ = (
        ("user_data", ctypes.c_uint8 * REPORT_DATA),
        ("vmpl", ctypes.c_uint32),
        ("rsvd", ctypes.c_uint8 * 28),
    )


class ReportResponse(ctypes.Structure):
    """snp_report_resp: firmware's MSG_REPORT_RSP at its front."""

    _fields_ = (
        ("status", ctypes.c_uint32),
        ("report_size", ctypes.c_uint32),
        ("rsvd", ctypes.c_uint8 * 24),
        ("report", ctypes.c_uint8 * REPORT),
        ("rest", ctypes.c_uint8 * (4000 - 32 - REPORT)),
    )


class ExtendedRequest(ctypes.Structure):
    """snp_ext_report_req."""

    _fields_ = (
        ("data", ReportRequest),
        ("certs_address", ctypes.c_uint64),
        ("certs_len", ctypes.c_uint32),
    )


class GuestRequest(ctypes.Structure):
    """snp_guest_request_ioctl."""

    _fields_ = (
        ("msg_version", ctypes.c_uint8),
        ("req_data", ctypes.c_uint64),
        ("resp_data", ctypes.c_uint64),
        ("fw_error", ctypes.c_uint32),
        ("vmm_error", ctypes.c_uint32),
    )


def _iowr(number: int) -> int:
    both = 3
    return both << 30 | ctypes.sizeof(GuestRequest) << 16 | ord("S") << 8 | number


GET_REPORT: Final = _iowr(0)
GET_EXT_REPORT: Final = _iowr(2)

Ioctl = Callable[[int, int, GuestRequest], object]


@dataclass(frozen=True, slots=True)
class SevReport:
    """What the processor signed, and the host's table of certificates."""

    report: bytes
    certificates: bytes


def ask(
    report_data: bytes,
    device: Path = DEVICE,
    *,
    vmpl: int = 0,
    ioctl: Ioctl = fcntl.ioctl,
) -> SevReport:
    """Have a report made, with certificates where the host has any.

    UnreachableError where there is no such device, or it refuses.
    """
    if len(report_data) != REPORT_DATA:
        raise ValueError(f"report data has {REPORT_DATA} bytes")
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnreachableError(f"{device.name}: {error.strerror}") from error
    try:
        return _extended(descriptor, report_data, vmpl, ioctl, CERTIFICATES)
    finally:
        os.close(descriptor)


def _extended(
    descriptor: int, report_data: bytes, vmpl: int, ioctl: Ioctl, room: int
) -> SevReport:
    certificates = ctypes.create_string_buffer(room)
    request = ExtendedRequest(
        data=ReportRequest(
            user_data=(ctypes.c_uint8 * REPORT_DATA)(*report_data), vmpl=vmpl
        ),
        certs_address=ctypes.addressof(certificates),
        certs_len=room,
    )
    response = ReportResponse()
    message = GuestRequest(
        msg_version=MESSAGE_VERSION,
        req_data=ctypes.addressof(request),
        resp_data=ctypes.addressof(response),
    )
    try:
        ioctl(descriptor, GET_EXT_REPORT, message)
    except OSError as error:
        wanted = request.certs_len
        if message.vmm_error == _INVALID_LENGTH and room < wanted <= _MAX_CERTIFICATES:
            larger = -(-wanted // _PAGE) * _PAGE
            return _extended(descriptor, report_data, vmpl, ioctl, larger)
        raise UnreachableError(
            f"sev-guest: {error.strerror}, firmware {message.fw_error:#x},"
            f" host {message.vmm_error:#x}"
        ) from error
    if response.status or response.report_size != REPORT:
        raise UnreachableError(
            f"sev-guest: status {response.status:#x}, {response.report_size} bytes"
        )
    used = min(request.certs_len, room)
    return SevReport(bytes(response.report), certificates.raw[:used])
