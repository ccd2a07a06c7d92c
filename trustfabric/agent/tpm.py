"""TPM 2.0 commands, as many as attestation needs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from trustfabric.agent.transport import Transport
from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.tpm2 import BANKS

_NO_SESSIONS = 0x8001
_SESSIONS = 0x8002
_OWNER = 0x4000_0001
_PASSWORD = bytes.fromhex("00000009 40000009 0000 01 0000")
"""One authorisation: the empty password."""

_STARTUP = 0x144
_CREATE_PRIMARY = 0x131
_PCR_RESET = 0x13D
_QUOTE = 0x158
_FLUSH_CONTEXT = 0x165
_GET_RANDOM = 0x17B
_PCR_READ = 0x17E
_PCR_EXTEND = 0x182

_AGAIN = frozenset({0x908, 0x90A, 0x922})
"""Yielded, testing, retry: the same command works a little later."""
_ALREADY_STARTED = 0x100
_ATTEMPTS = 50
_PAUSE_S = 0.02
_PCRS_PER_READ = 8
_MAX = 4096

_ATTRIBUTES = 0x0005_0472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign."""
_NULL = 0x0010

AK_ECC: Final = (
    bytes.fromhex("0023 000B")
    + _ATTRIBUTES.to_bytes(4, "big")
    + bytes.fromhex("0000 0010 0018 000B 0003 0010 0000 0000")
)
"""ECDSA on P-256 with SHA-256."""
AK_RSA: Final = (
    bytes.fromhex("0001 000B")
    + _ATTRIBUTES.to_bytes(4, "big")
    + bytes.fromhex("0000 0010 0014 000B 0800 00000000 0000")
)
"""RSASSA of 2048 bits with SHA-256."""


class TpmError(Exception):
    """The TPM refused a command."""

    def __init__(self, command: int, code: int) -> None:
        super().__init__(f"command {command:#x} answered {code:#x}")
        self.code = code


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """A key that is loaded, until its context ends."""

    handle: int
    public: bytes
    """TPMT_PUBLIC."""


@dataclass(frozen=True, slots=True)
class Quote:
    """What the TPM signed, and how."""

    attest: bytes
    signature: bytes
    """TPMT_SIGNATURE."""


class Tpm:
    """One TPM behind a transport; it holds at most one object at a time."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def startup(self) -> None:
        """Start it after power-on; fine when somebody did."""
        try:
            self._run(_STARTUP, b"\x00\x00")
        except TpmError as error:
            if error.code != _ALREADY_STARTED:
                raise

    @contextmanager
    def attestation_key(self, template: bytes = AK_ECC) -> Iterator[AttestationKey]:
        """Derive the primary key of this template; the same one on every boot."""
        parameters = b"\x00\x04\x00\x00\x00\x00" + _sized(template) + bytes(6)
        response = Cursor(self._run(_CREATE_PRIMARY, parameters, _OWNER), "primary")
        handle = response.u32()
        response.u32()  # size of what follows
        try:
            yield AttestationKey(handle, response.sized(_MAX))
        finally:
            self._run(_FLUSH_CONTEXT, handle.to_bytes(4, "big"))

    def quote(
        self,
        key: AttestationKey,
        extra_data: bytes,
        selection: Mapping[str, Sequence[int]],
    ) -> Quote:
        parameters = _sized(extra_data) + _NULL.to_bytes(2, "big") + _pcrs(selection)
        response = Cursor(self._run(_QUOTE, parameters, key.handle), "quote")
        size = response.u32()
        start = response.offset
        attest = response.sized(_MAX)
        return Quote(attest, response.take(size - (response.offset - start)))

    def pcr_read(self, bank: str, indexes: Sequence[int]) -> dict[int, bytes]:
        """Read registers; a TPM answers at most eight at a time."""
        values: dict[int, bytes] = {}
        wanted = sorted(set(indexes))
        for start in range(0, len(wanted), _PCRS_PER_READ):
            part = wanted[start : start + _PCRS_PER_READ]
            response = Cursor(self._run(_PCR_READ, _pcrs({bank: part})), "pcr-read")
            response.u32()  # update counter
            for _ in range(response.u32()):
                response.u16()
                response.take(response.u8())
            digests = [response.sized(64) for _ in range(response.u32())]
            values.update(zip(part, digests, strict=True))
        return values

    def pcr_extend(self, index: int, bank: str, digest: bytes) -> None:
        parameters = b"\x00\x00\x00\x01" + BANKS[bank].to_bytes(2, "big") + digest
        self._run(_PCR_EXTEND, parameters, index)

    def pcr_reset(self, index: int) -> None:
        """Only 16 and 23 can be."""
        self._run(_PCR_RESET, b"", index)

    def random(self, size: int) -> bytes:
        drawn = b""
        while len(drawn) < size:
            wanted = min(size - len(drawn), 32)
            response = Cursor(
                self._run(_GET_RANDOM, wanted.to_bytes(2, "big")), "random"
            )
            drawn += response.sized(wanted)
        return drawn

    def _run(self, command: int, parameters: bytes, handle: int | None = None) -> bytes:
        """Send a command until the TPM has time for it; return what follows the code.

        A handle is authorised with the empty password.
        """
        body = parameters
        if handle is not None:
            body = handle.to_bytes(4, "big") + _PASSWORD + parameters
        tag = _NO_SESSIONS if handle is None else _SESSIONS
        message = (
            tag.to_bytes(2, "big")
            + (10 + len(body)).to_bytes(4, "big")
            + command.to_bytes(4, "big")
            + body
        )
        code = 0
        for _ in range(_ATTEMPTS):
            response = Cursor(self._transport.exchange(message), "response")
            response.u16()
            response.u32()
            code = response.u32()
            if code == 0:
                return response.take(response.remaining)
            if code not in _AGAIN:
                break
            time.sleep(_PAUSE_S)
        raise TpmError(command, code)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _pcrs(selection: Mapping[str, Sequence[int]]) -> bytes:
    """TPML_PCR_SELECTION."""
    packed = len(selection).to_bytes(4, "big")
    for bank, indexes in selection.items():
        mask = sum(1 << index for index in set(indexes))
        packed += BANKS[bank].to_bytes(2, "big") + b"\x03" + mask.to_bytes(3, "little")
    return packed
