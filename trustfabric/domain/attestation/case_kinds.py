"""How a case of each kind is asked: which files, which words of policy."""

from collections.abc import Callable, Mapping
from dataclasses import replace
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
    Kinds,
    SnpPolicy,
    TcbFloor,
    TpmPolicy,
)
from trustfabric.domain.evidence import snp, tpm2
from trustfabric.domain.evidence.anchors import AmdRoots, Anchors
from trustfabric.domain.evidence.documents import hex_bytes, read_json
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import Code, Reject
from trustfabric.domain.evidence.tpm2_signature import (
    TpmSignature,
    bare_rsassa,
    parse_signature,
)

_BARE = "raw-rsassa-"
_ENDORSER = "case"


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
        present=lambda: (quote(), Anchors(keys=(_enrolled(key),))),
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
    """A PEM, or the TPM's own description with or without its length in front."""
    if key.lstrip().startswith(b"-----BEGIN"):
        return EnrolledKey.from_pem(key, _ENDORSER)
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
    product = case.text("product")
    own = amd_anchors(case, anchors, product, PurePosixPath(case.text("report")))
    return Question(
        kind=EvidenceKind.AMD_SEV_SNP,
        present=lambda: (snp.parse(report, leaf, ask), own),
        binding=hex_bytes(words.report_data, "case policy report_data"),
        policy=case_policy(Kinds(amd_sev_snp=_snp_policy(words, product))),
        now=case.now(),
    )


def _snp_policy(words: SnpWords, product: str) -> SnpPolicy:
    return SnpPolicy.model_construct(
        max_vmpl=words.max_vmpl,
        allow_debug=words.allow_debug,
        allow_migrate=words.allow_migrate,
        vlek=words.vlek,
        min_tcb={} if words.min_tcb is None else {product: words.min_tcb},
        require_crl=words.require_crl,
        measurements=tuple(value.lower() for value in words.measurements),
        measured=False,
    )


def amd_anchors(
    case: Case, anchors: Anchors, product: str, beside: PurePosixPath
) -> Anchors:
    """AMD's roots of ours, or a synthetic platform's that lie beside the case."""
    name = case.text("anchor")
    if name == "amd":
        roots = anchors.amd.get(product)
    else:
        folder = beside.parent
        roots = AmdRoots(
            ark=case.named_file(str(folder / f"{name}.ark.pem")),
            intermediates=(case.named_file(str(folder / f"{name}.ask.pem")),),
        )
    if roots is None:
        raise Reject(Code.UNSUPPORTED, "product", f"no root for {product}")
    if case.has("crl"):
        roots = replace(roots, crl=case.file("crl"))
    return Anchors(amd={product: roots})


QUESTIONS: Mapping[str, Callable[[Case, Anchors], Question]] = {
    EvidenceKind.TPM: tpm_question,
    EvidenceKind.AMD_SEV_SNP: snp_question,
}
