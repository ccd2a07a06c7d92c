"""AMD SEV-SNP attestation reports: 0x4A0 bytes, little-endian."""

from dataclasses import dataclass
from typing import Final

from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.model import Code, Reject

_CHECK = "report"
_SIZE = 0x4A0
_SIGNED = 0x2A0
_VERSIONS = (2, 3, 5)
_WITH_CPUID = 3
_WITH_MITIGATIONS = 5
_ECDSA_P384_SHA384 = 1
_POLICY_RESERVED_ONE = 1 << 17
_POLICY_KNOWN = (1 << 26) - 1
_SIGNERS = {0: "VCEK", 1: "VLEK"}
_SCALAR = 48
_SCALAR_FIELD = 72

_FAMILY_ZEN4 = 0x19
_FAMILY_ZEN5 = 0x1A
_MODELS: Final = ((0x00, 0x0F, "Milan"), (0x10, 0x1F, "Genoa"), (0xA0, 0xAF, "Genoa"))


@dataclass(frozen=True, slots=True)
class Tcb:
    """Security versions of a platform; compared component by component."""

    fmc: int
    bl: int
    tee: int
    snp: int
    ucode: int

    @classmethod
    def of(cls, raw: bytes, product: str) -> "Tcb":
        """Take a TCB_VERSION apart: Turin orders it otherwise."""
        if product == "Turin":
            return cls(raw[0], raw[1], raw[2], raw[3], raw[7])
        return cls(0, raw[0], raw[1], raw[6], raw[7])

    def reaches(self, floor: "Tcb") -> bool:
        return all(
            mine >= least
            for mine, least in zip(self.parts(), floor.parts(), strict=True)
        )

    def parts(self) -> tuple[int, int, int, int, int]:
        return (self.fmc, self.bl, self.tee, self.snp, self.ucode)

    def __str__(self) -> str:
        names = ("fmc", "bl", "tee", "snp", "ucode")
        pairs = zip(names, self.parts(), strict=True)
        return " ".join(f"{name}={part}" for name, part in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """One report as it came; the product says how to read its TCB versions."""

    signed: bytes
    """The region that the signature covers."""
    version: int
    guest_svn: int
    policy: int
    vmpl: int
    platform_info: int
    signer: str
    """VCEK (the chip's own key) or VLEK (a cloud provider's)."""
    chip_key_masked: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    report_id: bytes
    current_tcb: bytes
    reported_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    chip_id: bytes
    product: str | None
    """As the processor names itself; None before version 3."""
    r: int
    s: int


def parse_report(raw: bytes) -> SnpReport:
    """Take a report apart; bytes that nobody signed must be zero."""
    if len(raw) != _SIZE:
        raise Reject(
            Code.MALFORMED, _CHECK, "size", expected=str(_SIZE), actual=str(len(raw))
        )
    cursor = Cursor(raw, _CHECK, "little")
    version, guest_svn, policy = cursor.u32(), cursor.u32(), cursor.u64()
    _require_version(version)
    _require_policy(policy)
    cursor.take(32)  # family and image id, as the guest's owner likes
    vmpl = cursor.u32()
    _require_algorithm(cursor.u32())
    current_tcb, platform_info = cursor.take(8), cursor.u64()
    signer, chip_key_masked = _flags(cursor)
    report_data, measurement = cursor.take(64), cursor.take(48)
    host_data = cursor.take(32)
    cursor.take(96)  # digests of the id key and of its author
    report_id = cursor.take(32)
    cursor.take(32)  # of the migration agent
    reported_tcb = cursor.take(8)
    product = _product(cursor, version)
    chip_id, committed_tcb = cursor.take(64), cursor.take(8)
    cursor.take(8)  # current and committed firmware builds
    launch_tcb = cursor.take(8)
    if version >= _WITH_MITIGATIONS:
        cursor.take(16)
    cursor.zeros(_SIGNED - cursor.offset, "the end of the signed region")
    r, s = _scalar(cursor), _scalar(cursor)
    cursor.zeros(cursor.remaining, "the end of the report")
    return SnpReport(
        signed=raw[:_SIGNED],
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        vmpl=vmpl,
        platform_info=platform_info,
        signer=signer,
        chip_key_masked=chip_key_masked,
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        report_id=report_id,
        current_tcb=current_tcb,
        reported_tcb=reported_tcb,
        committed_tcb=committed_tcb,
        launch_tcb=launch_tcb,
        chip_id=chip_id,
        product=product,
        r=r,
        s=s,
    )


def _require_version(version: int) -> None:
    if version not in _VERSIONS:
        raise Reject(
            Code.UNSUPPORTED,
            "report-version",
            "a layout that we don't know",
            expected=" or ".join(map(str, _VERSIONS)),
            actual=str(version),
        )


def _require_policy(policy: int) -> None:
    if not policy & _POLICY_RESERVED_ONE:
        raise Reject(Code.MALFORMED, "guest-policy", "bit 17 must be one")
    if policy & ~_POLICY_KNOWN:
        raise Reject(Code.UNSUPPORTED, "guest-policy", f"unknown bits in {policy:#x}")


def _require_algorithm(algorithm: int) -> None:
    if algorithm != _ECDSA_P384_SHA384:
        raise Reject(Code.UNSUPPORTED, _CHECK, f"signature algorithm {algorithm}")


def _flags(cursor: Cursor) -> tuple[str, bool]:
    """Read which key signed, and whether the chip's key is masked."""
    flags = cursor.u32()
    signer = _SIGNERS.get(flags >> 2 & 7)
    if signer is None:
        raise Reject(Code.UNSUPPORTED, _CHECK, f"signing key {flags >> 2 & 7}")
    if flags >> 5:
        raise cursor.malformed("reserved flags are on")
    cursor.zeros(4, "the field after the flags")
    return signer, bool(flags & 2)


def _product(cursor: Cursor, version: int) -> str | None:
    family, model, _stepping = cursor.u8(), cursor.u8(), cursor.u8()
    cursor.zeros(21, "the field after the CPUID")
    if version < _WITH_CPUID:
        if family or model:
            raise cursor.malformed("a CPUID before version 3")
        return None
    if family == _FAMILY_ZEN5:
        return "Turin"
    if family == _FAMILY_ZEN4:
        for first, last, product in _MODELS:
            if first <= model <= last:
                return product
    raise Reject(
        Code.UNSUPPORTED,
        "cpuid",
        f"family {family:#x} model {model:#x} is no known one",
    )


def _scalar(cursor: Cursor) -> int:
    value = int.from_bytes(cursor.take(_SCALAR), "little")
    cursor.zeros(_SCALAR_FIELD - _SCALAR, "the rest of a signature number")
    return value
