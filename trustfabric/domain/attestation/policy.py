"""Appraisal policies: versioned documents that say what evidence must show."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from trustfabric.domain.evidence.documents import read_object
from trustfabric.domain.evidence.model import JsonValue, Reject
from trustfabric.errors import InvalidError

_MAX_DOCUMENT = 256 * 1024
_GUEST_RESETTABLE = (16, 23)

Bank: TypeAlias = Literal["sha256", "sha384", "sha512"]
SnpProduct: TypeAlias = Annotated[str, Field(pattern=r"^(Milan|Genoa|Turin)$")]


def _hexadecimal(value: str) -> str:
    bytes.fromhex(value)
    return value.lower()


def _relied_on(index: int) -> int:
    if index in _GUEST_RESETTABLE:
        raise ValueError(
            f"PCR {index} is reset by the guest at will: it proves nothing"
        )
    return index


Digest: TypeAlias = Annotated[
    str, Field(min_length=40, max_length=128), AfterValidator(_hexadecimal)
]
Rtmr: TypeAlias = Annotated[int, Field(ge=0, le=3)]
Pcr: TypeAlias = Annotated[int, Field(ge=0, le=23), AfterValidator(_relied_on)]
Component: TypeAlias = Annotated[int, Field(ge=0, le=255)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TpmPolicy(_Section):
    """TPM quotes."""

    banks: tuple[Bank, ...] = Field(default=("sha256",), min_length=1)
    hashes: tuple[Bank, ...] = ("sha256", "sha384", "sha512")
    """Of signatures."""
    min_nonce: int = Field(default=32, ge=0, le=64)
    """Bytes that a quote's extraData must have."""
    required_pcrs: tuple[Pcr, ...] = ()
    """Registers that must be quoted, beside those with reference values."""
    pcrs: Mapping[Pcr, tuple[Digest, ...]] = {}
    """Reference values: register to what it may hold."""
    measured: bool = True
    """Without any reference value no verdict is reached; False: the key is enough."""
    allow_software: tuple[str, ...] = ()
    """Endorsers of software TPMs that are allowed, by name."""


class TcbFloor(_Section):
    """Each component must be at least this."""

    fmc: Component = 0
    bl: Component = 0
    tee: Component = 0
    snp: Component = 0
    ucode: Component = 0


class SnpPolicy(_Section):
    """AMD SEV-SNP reports."""

    products: tuple[SnpProduct, ...] = ("Milan", "Genoa", "Turin")
    max_vmpl: int = Field(default=0, ge=0, le=3)
    allow_debug: bool = False
    allow_migrate: bool = False
    vlek: Literal["allow", "deny"] = "deny"
    """Keys that a cloud provider loads, which say nothing about the chip."""
    min_tcb: Mapping[SnpProduct, TcbFloor] = {}
    """Reported and committed versions of each product."""
    require_crl: bool = False
    """Without a revocation list no verdict is reached. One that is out of date never
    counts, whatever this says."""
    measurements: tuple[Digest, ...] = ()
    measured: bool = True


class TdxPolicy(_Section):
    """Intel TDX quotes."""

    allow_status: tuple[str, ...] = ("UpToDate",)
    accept_advisories: tuple[str, ...] | None = None
    """Where an allowed status comes with advisories: all must be here. None: any."""
    min_eval: int = Field(default=0, ge=0)
    """The least TCB evaluation number that collateral must have."""
    grace_until: AwareDatetime | None = None
    """Until then, and no verdict longer, a status outside `allow_status` and advisories
    outside `accept_advisories` are accepted with a warning."""
    mrtd: tuple[Digest, ...] = ()
    """Launch digests: of the firmware, as a rule."""
    rtmrs: Mapping[Rtmr, tuple[Digest, ...]] = {}
    """Reference values of what the guest measured since: register to what it may hold.
    By convention 1 and 2 hold boot loader, kernel and command line."""
    measured: bool = True


class AzurePolicy(_Section):
    """Azure's composite: a hardware report that vouches for a virtual TPM.

    That the TPM is Azure's, its launch digest alone says: it covers the paravisor.
    Any other guest, wherever it runs, can vouch for a key of its own making.
    """

    snp: SnpPolicy = SnpPolicy()
    tdx: TdxPolicy = TdxPolicy()
    tpm: TpmPolicy = TpmPolicy()


class NvidiaPolicy(_Section):
    """NVIDIA device reports: allowed values of measurement blocks."""

    measurements: Mapping[int, tuple[Digest, ...]] = {}
    measured: bool = True


class EarPolicy(_Section):
    """Results of other verifiers."""

    max_age_s: int | None = Field(default=300, gt=0)
    """Since the token was issued; None: its own expiry only."""
    profiles: tuple[str, ...] = ("tag:github.com,2023:veraison/ear",)
    nonce: bool = True
    """Whether the token must carry the challenge."""


class Kinds(_Section):
    """One section per evidence kind."""

    tpm: TpmPolicy = TpmPolicy()
    amd_sev_snp: SnpPolicy = Field(default=SnpPolicy(), alias="amd-sev-snp")
    intel_tdx: TdxPolicy = Field(default=TdxPolicy(), alias="intel-tdx")
    composite_azure_vtpm: AzurePolicy = Field(
        default=AzurePolicy(), alias="composite-azure-vtpm"
    )
    nvidia_gpu: NvidiaPolicy = Field(default=NvidiaPolicy(), alias="nvidia-gpu")
    ear: EarPolicy = EarPolicy()

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)


class AppraisalPolicy(_Section):
    """What a verdict is based on; its id and version are recorded with each."""

    id: str = Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: int = Field(ge=1)
    max_age_s: int = Field(default=300, ge=1, le=31_536_000)
    """How long a verdict counts, from its challenge on."""
    kinds: Kinds = Kinds()

    def document(self) -> dict[str, JsonValue]:
        dumped: dict[str, JsonValue] = self.model_dump(mode="json", by_alias=True)
        return dumped


def parse_policy(
    document: bytes | Mapping[str, object], most: int = _MAX_DOCUMENT
) -> AppraisalPolicy:
    """Read a policy; an unknown key, a doubled one or a wrong value is InvalidError.

    So is one of more than `most` bytes.
    """
    try:
        if not isinstance(document, bytes):
            document = json.dumps(document).encode()
        members = read_object(document, "policy", most)
        return AppraisalPolicy.model_validate_json(json.dumps(members))
    except Reject as reject:
        raise InvalidError(str(reject)) from None
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise InvalidError("policy: " + "; ".join(faults), faults=faults) from None
    except (TypeError, ValueError) as error:
        raise InvalidError(f"policy: {error}") from None


DEFAULT_POLICY = AppraisalPolicy(id="default", version=1)
"""Software TPMs are refused, and without reference values nothing is trusted."""

_ZERO = "00" * 32

DEMO_POLICY = AppraisalPolicy(
    id="demo-software-tpm",
    version=1,
    kinds=Kinds(
        tpm=TpmPolicy(
            allow_software=("swtpm",),
            pcrs=dict.fromkeys(range(9), (_ZERO,)),
        )
    ),
)
"""For the demo fleet only: a software TPM whose boot measured nothing."""


def with_measurements(
    policy: AppraisalPolicy, measurements: tuple[str, ...]
) -> AppraisalPolicy:
    """Allow these launch digests (48 bytes, hexadecimal) beside the policy's own."""
    document = json.loads(policy.model_dump_json(by_alias=True))
    for section, field in (("amd-sev-snp", "measurements"), ("intel-tdx", "mrtd")):
        document["kinds"][section][field] += measurements
    return parse_policy(document)
