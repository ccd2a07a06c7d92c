"""NVIDIA device evidence, from a device of our own."""

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509

from tests.domain.evidence.nvidia_devices import (
    ANCHORS,
    BLOCKS,
    FWID,
    NOW,
    ROOT,
    Device,
    Exchange,
    certificate,
    document,
)
from trustfabric.domain.attestation.appraisal import Expected, verify
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.policy import AppraisalPolicy, Kinds, NvidiaPolicy
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import Code, EvidenceKind

NONCE = bytes(range(32))
DEVICE = Device()
LEAF, CA, _ = DEVICE.chain
CA_KEY, DEVICE_KEY = DEVICE.born, DEVICE.key
CA_NAME = "GH100 BROM"


def judge(
    exchange: Exchange | None = None,
    chain: tuple[x509.Certificate, ...] = (LEAF, CA, ROOT),
    *,
    anchors: Anchors | None = None,
    nonce: bytes = NONCE,
    **policy: Any,
) -> Appraisal:
    section = NvidiaPolicy(**{"measurements": {1: (BLOCKS[1].hex(),)}, **policy})
    return verify(
        EvidenceKind.NVIDIA_GPU,
        document(DEVICE.report(exchange or Exchange()), chain),
        expected=Expected(binding=nonce),
        anchors=anchors or ANCHORS,
        policy=AppraisalPolicy(id="test", version=1, kinds=Kinds(nvidia_gpu=section)),
        now=NOW,
    )


def test_a_device_with_known_measurements_is_trusted() -> None:
    appraisal = judge()

    assert appraisal.code is Code.OK
    assert (appraisal.claims["device"], appraisal.claims["driver"]) == ("GH100", "535")


def test_one_trailing_zero_is_tolerated_and_no_more() -> None:
    assert judge(Exchange(end=b"\0")).accepted
    assert judge(Exchange(end=b"\x01")).code is Code.MALFORMED
    assert judge(Exchange(end=b"\0\0")).code is Code.MALFORMED


@pytest.mark.parametrize(
    ("measurements", "code"),
    [
        ({1: ("ff" * 48,)}, Code.MEASUREMENT_UNKNOWN),
        ({9: ("ff" * 48,)}, Code.POLICY_VIOLATION),
        ({}, Code.NO_REFERENCE_VALUES),
    ],
)
def test_measurements_are_compared_with_what_is_allowed(
    measurements: dict[int, tuple[str, ...]], code: Code
) -> None:
    assert judge(measurements=measurements).code is code


@pytest.mark.parametrize(
    ("exchange", "code"),
    [
        (Exchange(version=0x12), Code.UNSUPPORTED),
        (Exchange(answer=0x7F), Code.MALFORMED),
        (Exchange(blocks=1), Code.MALFORMED),
        (Exchange(blocks=3), Code.MALFORMED),
        (Exchange(opaque=b"\x14\0\x30\0" + bytes(48)), Code.ENDORSEMENT_MISMATCH),
        (Exchange(opaque=b""), Code.ENDORSEMENT_MISMATCH),
        (Exchange(opaque=b"\x03\0\0\0" * 2), Code.MALFORMED),
    ],
)
def test_an_exchange_of_another_shape_is_refused(
    exchange: Exchange, code: Code
) -> None:
    assert judge(exchange).code is code


def test_a_switch_states_no_firmware_in_the_exchange() -> None:
    switch = certificate(
        "LS_10", DEVICE_KEY, CA_NAME, CA_KEY, authority=False, fwid=FWID
    )

    assert judge(Exchange(opaque=b""), (switch, CA, ROOT)).accepted


def test_a_leaf_without_a_firmware_id_is_unsupported() -> None:
    newer = certificate("GB100", DEVICE_KEY, CA_NAME, CA_KEY, authority=False)

    assert judge(chain=(newer, CA, ROOT)).code is Code.UNSUPPORTED


OTHER = certificate("root", CA_KEY, "root", CA_KEY)


@pytest.mark.parametrize(
    ("chain", "code"),
    [
        ((ROOT,), Code.CHAIN_INVALID),
        ((LEAF, CA), Code.CHAIN_INVALID),
        ((LEAF, ROOT), Code.CHAIN_INVALID),
        ((LEAF, CA, OTHER), Code.CHAIN_INVALID),
        ((LEAF, CA, ROOT, ROOT, ROOT, ROOT, ROOT, ROOT, ROOT), Code.CHAIN_INVALID),
        ((), Code.MALFORMED),
    ],
    ids=["root", "no-root", "no-ca", "other-root", "long", "none"],
)
def test_the_chain_ends_at_our_root(
    chain: tuple[x509.Certificate, ...], code: Code
) -> None:
    assert judge(chain=chain).code is code


def test_a_device_may_not_sign_certificates() -> None:
    child = certificate("child", DEVICE_KEY, "GH100", DEVICE_KEY, fwid=FWID)

    assert judge(chain=(child, LEAF, CA, ROOT)).code is Code.CHAIN_INVALID


def test_a_chain_out_of_date_gives_no_verdict() -> None:
    old = certificate(
        "GH100",
        DEVICE_KEY,
        CA_NAME,
        CA_KEY,
        fwid=FWID,
        until=NOW - timedelta(days=1),
    )

    assert judge(chain=(old, CA, ROOT)).code is Code.EXPIRED


def test_another_nonce_and_a_missing_root_are_refused() -> None:
    assert judge(nonce=bytes(32)).code is Code.NONCE_MISMATCH
    assert judge(anchors=Anchors()).code is Code.NO_REFERENCE_VALUES
