"""How a case of each kind is asked: which files, which words of policy."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

from trustfabric.domain.attestation.casefile import (
    Case,
    PolicyWords,
    Question,
    case_policy,
)
from trustfabric.domain.attestation.model import EvidenceKind
from trustfabric.domain.attestation.policy import (
    AzurePolicy,
    EarPolicy,
    Kinds,
    NvidiaPolicy,
    SnpPolicy,
    TcbFloor,
    TdxPolicy,
    TpmPolicy,
)
from trustfabric.domain.evidence import azure, ear, nvidia, snp, tdx, tpm2
from trustfabric.domain.evidence.anchors import AMD_PRODUCTS, AmdRoots, Anchors
from trustfabric.domain.evidence.documents import hex_bytes, read_json, read_object
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import Code, Reject
from trustfabric.domain.evidence.tpm2_signature import (
    TpmSignature,
    bare_rsassa,
    parse_signature,
)

_BARE = "raw-rsassa-"
_ENDORSER = "case"
_DER_SEQUENCE = b"\x30"


class TpmWords(PolicyWords):
    require_pcrs: tuple[int, ...] = ()
    reference: Mapping[int, tuple[str, ...]] = {}
    allow_hash: tuple[Literal["sha256", "sha384", "sha512"], ...] = (
        "sha256",
        "sha384",
        "sha512",
    )
    min_nonce: int = 8


def tpm_question(case: Case, anchors: Anchors) -> Question:
    words = case.policy(TpmWords)
    quote = quote_reader(case)
    key = case.file("ak")
    return Question(
        kind=EvidenceKind.TPM,
        present=lambda: (quote(), replace(anchors, keys=(_enrolled(key),))),
        binding=case.hex("nonce"),
        policy=case_policy(Kinds(tpm=tpm_policy(words))),
    )


def tpm_policy(words: TpmWords) -> TpmPolicy:
    """Take a case at its word, registers that a guest can reset included."""
    return TpmPolicy.model_construct(
        banks=words.allow_hash,
        hashes=words.allow_hash,
        min_nonce=words.min_nonce,
        required_pcrs=words.require_pcrs,
        pcrs={
            index: tuple(value.lower() for value in values)
            for index, values in words.reference.items()
        },
        measured=False,
    )


def quote_reader(case: Case) -> Callable[[], tpm2.TpmQuote]:
    """Read the files of a quote now, parse them when asked."""
    attest, signature = case.file("attest"), case.file("signature")
    pcrs, bank = case.file("pcrs"), case.text("bank")
    form = case.text("signature_format") if case.has("signature_format") else "tpmt"
    return lambda: tpm2.parse(
        attest,
        _signature(signature, form),
        tpm2.read_pcrs({bank: read_json(pcrs, "pcrs")}),
    )


def _signature(raw: bytes, form: str) -> TpmSignature:
    if form == "tpmt":
        return parse_signature(raw)
    if form.startswith(_BARE):
        return bare_rsassa(raw, form.removeprefix(_BARE))
    raise Reject(Code.UNSUPPORTED, "signature", f"form {form}")


def _enrolled(key: bytes) -> EnrolledKey:
    """Read PEM, DER, or the TPM's own description with or without its length."""
    if key.lstrip().startswith(b"-----BEGIN"):
        return EnrolledKey.from_pem(key, _ENDORSER)
    if key.startswith(_DER_SEQUENCE):
        return EnrolledKey.from_der(key, _ENDORSER)
    if int.from_bytes(key[:2], "big") == len(key) - 2:
        key = key[2:]
    return EnrolledKey.from_tpmt(key, _ENDORSER)


class SnpWords(PolicyWords):
    measurements: tuple[str, ...] = ()
    report_data: str = ""
    max_vmpl: int = 0
    allow_debug: bool = False
    allow_migrate: bool = False
    vlek: Literal["allow", "deny"] = "allow"
    min_tcb: TcbFloor | None = None
    require_crl: bool = False


def snp_question(case: Case, anchors: Anchors) -> Question:
    words = case.policy(SnpWords)
    report, leaf = case.file("report"), case.file("leaf")
    ask = case.file("ask") if case.has("ask") else None
    own = amd_anchors(case, anchors, case.text("report"))
    return Question(
        kind=EvidenceKind.AMD_SEV_SNP,
        present=lambda: (snp.parse(report, leaf, ask), own),
        binding=hex_bytes(words.report_data, "case policy report_data"),
        policy=case_policy(Kinds(amd_sev_snp=snp_policy(case, words))),
        now=case.now(),
    )


def snp_policy(case: Case, words: SnpWords) -> SnpPolicy:
    product = case.text("product") if case.has("product") else ""
    products = (product,) if product in AMD_PRODUCTS else AMD_PRODUCTS
    floor = words.min_tcb
    return SnpPolicy.model_construct(
        products=products,
        max_vmpl=words.max_vmpl,
        allow_debug=words.allow_debug,
        allow_migrate=words.allow_migrate,
        vlek=words.vlek,
        min_tcb={} if floor is None else dict.fromkeys(products, floor),
        require_crl=words.require_crl,
        measurements=tuple(value.lower() for value in words.measurements),
        measured=False,
    )


def amd_anchors(case: Case, anchors: Anchors, beside: str) -> Anchors:
    """Take AMD's roots, or a synthetic platform's that lie beside the evidence."""
    if (name := case.text("anchor")) == "amd":
        amd = dict(anchors.amd)
    else:
        stem = str(PurePosixPath(beside).parent / name)
        found = (case.optional_file(f"{stem}.{role}.pem") for role in ("ask", "asvk"))
        roots = AmdRoots(
            ark=case.named_file(f"{stem}.ark.pem"),
            intermediates=tuple(each for each in found if each is not None),
        )
        amd = dict.fromkeys(AMD_PRODUCTS, roots)
    if case.has("crl"):
        crl = case.file("crl")
        amd = {product: replace(roots, crl=crl) for product, roots in amd.items()}
    return Anchors(amd=amd)


class NvidiaWords(PolicyWords):
    measurements: Mapping[int, tuple[str, ...]] = {}


def nvidia_question(case: Case, anchors: Anchors) -> Question:
    words = case.policy(NvidiaWords)
    report, chain = case.file("report"), case.file("chain")
    policy = NvidiaPolicy.model_construct(
        measurements={
            index: tuple(value.lower() for value in values)
            for index, values in words.measurements.items()
        },
        measured=False,
    )
    return Question(
        kind=EvidenceKind.NVIDIA_GPU,
        present=lambda: (nvidia.parse(report, chain), anchors),
        binding=case.hex("nonce"),
        policy=case_policy(Kinds(nvidia_gpu=policy)),
        now=case.now(),
    )


class TdxWords(PolicyWords):
    report_data: str = ""
    mrtd: tuple[str, ...] = ()
    allow_status: tuple[str, ...] = ("UpToDate",)
    accept_advisories: tuple[str, ...] | None = None
    min_eval: int = 0


def tdx_question(case: Case, anchors: Anchors) -> Question:
    words = case.policy(TdxWords)
    quote = case.file("quote")
    own = replace(anchors, intel_collateral=case.file("collateral"))
    return Question(
        kind=EvidenceKind.INTEL_TDX,
        present=lambda: (tdx.parse(quote), own),
        binding=hex_bytes(words.report_data, "case policy report_data"),
        policy=case_policy(Kinds(intel_tdx=tdx_policy(words))),
        now=case.now(),
    )


def tdx_policy(words: TdxWords) -> TdxPolicy:
    return TdxPolicy.model_construct(
        allow_status=words.allow_status,
        accept_advisories=words.accept_advisories,
        min_eval=words.min_eval,
        mrtd=tuple(value.lower() for value in words.mrtd),
        measured=False,
    )


class AzureWords(TpmWords, SnpWords, TdxWords):
    """Words of all halves."""


def azure_question(case: Case, anchors: Anchors) -> Question:
    words = case.policy(AzureWords)
    hcl, quote = case.file("hcl"), quote_reader(case)
    policy = AzurePolicy.model_construct(
        snp=snp_policy(case, words), tdx=tdx_policy(words), tpm=tpm_policy(words)
    )
    if case.has("tee") and case.text("tee") == EvidenceKind.INTEL_TDX:
        td_quote = case.file("quote")
        own = replace(anchors, intel_collateral=case.file("collateral"))
        read = partial(azure.parse_with_tdx, hcl, td_quote)
    else:
        ask = case.file("ask") if case.has("ask") else None
        own = amd_anchors(case, anchors, case.text("hcl"))
        read = partial(azure.parse_with_snp, hcl, case.file("leaf"), intermediate=ask)
    return Question(
        kind=EvidenceKind.COMPOSITE_AZURE_VTPM,
        present=lambda: (read(quote()), own),
        binding=case.hex("nonce"),
        policy=case_policy(Kinds(composite_azure_vtpm=policy)),
        now=case.now(),
    )


class EarWords(PolicyWords):
    max_age_s: int | None = None


def ear_question(case: Case, anchors: Anchors) -> Question:
    words = case.policy(EarWords)
    token, key = case.file("token"), case.file("key")
    asked = case.has("nonce")
    policy = EarPolicy.model_construct(
        max_age_s=words.max_age_s, nonce=asked, profiles=(case.text("profile"),)
    )
    return Question(
        kind=EvidenceKind.EAR,
        present=lambda: (
            ear.parse(token),
            replace(
                anchors,
                keys=(EnrolledKey.from_jwk(read_object(key, "key"), _ENDORSER),),
            ),
        ),
        binding=case.hex("nonce") if asked else b"",
        policy=case_policy(Kinds(ear=policy)),
        now=case.now(),
    )


QUESTIONS: Mapping[str, Callable[[Case, Anchors], Question]] = {
    EvidenceKind.TPM: tpm_question,
    EvidenceKind.AMD_SEV_SNP: snp_question,
    EvidenceKind.INTEL_TDX: tdx_question,
    EvidenceKind.COMPOSITE_AZURE_VTPM: azure_question,
    EvidenceKind.NVIDIA_GPU: nvidia_question,
    EvidenceKind.EAR: ear_question,
}
