"""Verification of evidence, from its document to its verdict; and the loop beside.

Real evidence of the tests' vectors. Beside each stands what nobody can do without:
the one signature, or the library's own verification.
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path

import dcap_qvl
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from benchmarks.bench import Bench
from benchmarks.frame import Figure, Part, Sample, percentile
from trustfabric.domain.attestation.appraisal import Expected, judge
from trustfabric.domain.attestation.case_kinds import QUESTIONS
from trustfabric.domain.attestation.casefile import Case
from trustfabric.domain.evidence import certificate, snp, tpm2
from trustfabric.domain.evidence.documents import read_json, read_object
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.domain.evidence.tpm2_signature import parse_signature

VECTORS = Path(__file__).parents[1] / "tests" / "data" / "vectors" / "dev"
SNP = "amd-sev-snp/genoa-v3-ms/good"
TPM = "tpm/swtpm-ecc/good"
TDX = "intel-tdx/v4-uptodate-phala/good"
TICK_S = 0.001


def _figure(kind: str, floor: float, aim: float, peer: str) -> Figure:
    return Figure(
        name=f"verify {kind}, median",
        unit="ms",
        peer=peer,
        less_is_better=True,
        floor=floor,
        aim=aim,
    )


SNP_WARM = _figure("SNP report", 3.0, 2.0, "its ECDSA P-384 signature alone")
SNP_COLD = _figure("SNP report of a new chip", 3.0, 2.0, SNP_WARM.peer or "")
TPM_QUOTE = _figure("TPM quote", 1.0, 0.3, "its ECDSA P-256 signature alone")
TDX_QUOTE = _figure("TDX quote", 3.0, 1.5, "dcap-qvl alone")
LAG = Figure(
    name="loop lag while verifying, p99",
    unit="ms",
    peer="verifying on the loop",
    less_is_better=True,
    floor=25.0,
    aim=10.0,
)


def _read(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def _cases() -> dict[str, Case]:
    document = read_object(_read("index.json"), "cases", 16 * 1024 * 1024)
    cases = document["cases"]
    assert isinstance(cases, list)
    return {case["id"]: Case(case, _read) for case in cases if case["id"] in _ASKED}


_ASKED = {SNP, TPM, TDX}


def _verification(case: Case) -> Callable[[], None]:
    question = QUESTIONS[case.text("kind")](case, packaged_anchors())

    def verify() -> None:
        appraisal = judge(
            question.kind,
            question.present,
            expected=Expected(binding=question.binding),
            policy=question.policy,
            now=question.now,
        )
        assert appraisal.accepted, appraisal.notes()

    return verify


def _cold(verify: Callable[[], None]) -> Callable[[], None]:
    """Verify as if none of its certificates had been seen."""

    def afresh() -> None:
        for remembered in (
            certificate.parse_certificate,
            certificate._require_signed,  # noqa: SLF001 - what makes it warm
            certificate._key,  # noqa: SLF001
        ):
            remembered.cache_clear()
        verify()

    return afresh


def _snp_signature(case: Case) -> Callable[[], None]:
    evidence = snp.parse(case.file("report"), case.file("leaf"))
    report = evidence.report
    signature = encode_dss_signature(report.r, report.s)
    algorithm = ec.ECDSA(hashes.SHA384())
    return lambda: evidence.signer.key.verify(signature, report.signed, algorithm)


def _tpm_signature(case: Case) -> Callable[[], None]:
    values = tpm2.read_pcrs(
        {case.text("bank"): read_json(case.file("pcrs"), "benchmark")}
    )
    signed = parse_signature(case.file("signature"))
    quote = tpm2.parse(case.file("attest"), signed, values)
    key = EnrolledKey.from_pem(case.file("ak"), "benchmark").load()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = (int.from_bytes(part, "big") for part in signed.parts)
    signature = encode_dss_signature(r, s)
    algorithm = ec.ECDSA(hashes.SHA256())
    return lambda: key.verify(signature, quote.attest, algorithm)


def _tdx_library(case: Case) -> Callable[[], None]:
    quote, root = case.file("quote"), packaged_anchors().intel
    collateral = dcap_qvl.QuoteCollateralV3.from_json(case.file("collateral").decode())
    now = int(datetime.fromisoformat(case.text("now")).timestamp())

    def verify() -> None:
        dcap_qvl.verify_with_root_ca(quote, collateral, root, now)

    return verify


def _both(
    ours: Callable[[], None], peer: Callable[[], object], times: int
) -> tuple[float, float]:
    """Return the medians in milliseconds, of both in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(times):
        for work, list_ in zip((ours, peer), taken, strict=True):
            begun = time.perf_counter()
            work()
            list_.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken[0]), statistics.median(taken[1])


async def measure_speed(bench: Bench) -> list[Sample]:
    cases, times = _cases(), bench.size(300, 60)
    warm = _verification(cases[SNP])
    pairs = (
        (SNP_COLD, _cold(warm), _snp_signature(cases[SNP])),
        (SNP_WARM, warm, _snp_signature(cases[SNP])),
        (TPM_QUOTE, _verification(cases[TPM]), _tpm_signature(cases[TPM])),
        (TDX_QUOTE, _verification(cases[TDX]), _tdx_library(cases[TDX])),
    )
    samples = []
    for figure, ours, peer in pairs:
        ours()
        samples.append(Sample(figure.name, *_both(ours, peer, times)))
    return samples


async def measure_lag(bench: Bench) -> list[Sample]:
    verify = _verification(_cases()[SNP])
    rounds = bench.size(400, 80)
    verify()
    with ThreadPoolExecutor(2) as threads:
        beside = await _lag(partial(_in_threads, threads, verify, rounds))
    on_it = await _lag(partial(_on_loop, verify, rounds))
    return [Sample(LAG.name, beside, on_it)]


async def _lag(work: Callable[[], object]) -> float:
    """Return by how many milliseconds the loop is late while something goes on."""
    lags: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            lags.append(1000 * (time.perf_counter() - due))

    ticking = asyncio.ensure_future(tick())
    outcome = work()
    if asyncio.iscoroutine(outcome):
        await outcome
    await asyncio.sleep(2 * TICK_S)  # whoever was late tells of it
    ticking.cancel()
    return percentile(lags, 0.99)


async def _in_threads(
    executor: Executor, verify: Callable[[], None], times: int
) -> None:
    """As the runtime does it: two at a time, off the loop."""
    loop = asyncio.get_running_loop()
    for _ in range(times // 2):
        await asyncio.gather(*(loop.run_in_executor(executor, verify) for _ in "ab"))


async def _on_loop(verify: Callable[[], None], times: int) -> None:
    """As it isn't done: whatever came in at once is verified at once."""
    at_once = 32
    for _ in range(times // at_once):
        for _ in range(at_once):
            verify()
        await asyncio.sleep(0)


PARTS = (
    Part("evidence", (SNP_COLD, SNP_WARM, TPM_QUOTE, TDX_QUOTE), measure_speed),
    Part("evidence beside the loop", (LAG,), measure_lag),
)
