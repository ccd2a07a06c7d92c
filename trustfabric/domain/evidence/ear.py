"""Results of other verifiers: EAR tokens, signed with a key that we enrolled."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from jwt.api_jws import PyJWS
from jwt.exceptions import (
    DecodeError,
    InvalidAlgorithmError,
    InvalidSignatureError,
    InvalidTokenError,
)

from trustfabric.domain.evidence.documents import (
    as_object,
    only_keys,
    read_object,
    text,
)
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import (
    _AUTHENTICATOR,
    Authenticated,
    Code,
    EvidenceKind,
    Reject,
)

_CHECK = "token"
_MAX = 64 * 1024
_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384"}
"""The curve of the enrolled key names the algorithm; the token's header never does."""

STATUSES: Final = ("none", "affirming", "warning", "contraindicated")
"""From saying nothing to saying the worst."""
_STATUS_NUMBERS = {0: "none", 2: "affirming", 32: "warning", 96: "contraindicated"}


@dataclass(frozen=True, slots=True)
class EarToken:
    """A compact JWS; nothing is believed yet."""

    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EarClaims:
    """What another verifier found."""

    profile: str
    verifier: str
    issued_at: int
    """Seconds since 1970, by that verifier's clock."""
    expires_at: int | None
    not_before: int | None
    nonces: tuple[str, ...]
    submodules: Mapping[str, str]
    """Name to the worst that is said about it."""


def parse_document(raw: bytes) -> EarToken:
    """Read `{"kind": "ear", "token"}`."""
    check = "document"
    members = read_object(raw, check)
    only_keys(members, check, frozenset({"kind", "token"}))
    if text(members, "kind", check) != EvidenceKind.EAR:
        raise Reject(Code.MALFORMED, "kind", "not the kind that was asked for")
    return parse(text(members, "token", check).encode())


def parse(raw: bytes) -> EarToken:
    if len(raw) > _MAX:
        raise Reject(Code.MALFORMED, _CHECK, f"{len(raw)} bytes")
    token = raw.strip().decode("ascii", "replace")
    if len(parts := token.split(".")) != 3:  # noqa: PLR2004 - a compact JWS has three
        raise Reject(Code.MALFORMED, _CHECK, f"{len(parts)} parts where a JWS has 3")
    return EarToken(token)


def authenticate(
    evidence: EarToken, keys: Sequence[EnrolledKey]
) -> Authenticated[EarClaims]:
    if not keys:
        raise Reject(Code.NO_REFERENCE_VALUES, "enrolled-key", "no verifier is known")
    refusals: list[Reject] = []
    for key in keys:
        try:
            payload = _signed_payload(evidence.token, key)
        except Reject as reject:
            refusals.append(reject)
            continue
        return Authenticated(
            kind=EvidenceKind.EAR,
            claims=_claims(read_object(payload, "claims")),
            region_sha256=hashlib.sha256(payload).hexdigest(),
            endorsements={"verifier_key_sha256": key.key_id},
            token=_AUTHENTICATOR,
        )
    raise refusals[0]


def _signed_payload(token: str, enrolled: EnrolledKey) -> bytes:
    key = enrolled.load()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Reject(Code.UNSUPPORTED, "enrolled-key", "a verifier's key is on a curve")
    algorithm = _ALGORITHMS.get(key.curve.name)
    if algorithm is None:
        raise Reject(Code.UNSUPPORTED, "enrolled-key", key.curve.name)
    try:
        payload = PyJWS(algorithms=[algorithm]).decode(token, key, [algorithm])
    except (InvalidSignatureError, InvalidAlgorithmError) as error:
        raise Reject(
            Code.SIGNATURE_INVALID, "signature", str(error), expected=algorithm
        ) from None
    except (DecodeError, InvalidTokenError, ValueError) as error:
        raise Reject(Code.MALFORMED, _CHECK, str(error)) from None
    assert isinstance(payload, bytes)
    return payload


def _claims(members: Mapping[str, object]) -> EarClaims:
    verifier = as_object(members.get("ear.verifier-id"), "claims verifier-id")
    submodules = as_object(members.get("submods"), "claims submods")
    if not submodules:
        raise Reject(Code.MALFORMED, "claims", "about nothing")
    issued_at = _seconds(members, "iat")
    if issued_at is None:
        raise Reject(Code.MALFORMED, "claims", "iat is missing")
    return EarClaims(
        profile=text(members, "eat_profile", "claims"),
        verifier=str(verifier.get("developer", "")),
        issued_at=issued_at,
        expires_at=_seconds(members, "exp"),
        not_before=_seconds(members, "nbf"),
        nonces=_nonces(members.get("eat_nonce")),
        submodules={
            name: _worst(as_object(submodule, f"claims {name}"))
            for name, submodule in submodules.items()
        },
    )


def _seconds(members: Mapping[str, object], key: str) -> int | None:
    value = members.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**40:
        raise Reject(Code.MALFORMED, "claims", f"{key}: seconds are wanted")
    return value


def _nonces(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(each for each in values if isinstance(each, str))


def _worst(submodule: Mapping[str, object]) -> str:
    """Its status, or its worst claim where that is worse than its status says."""
    status = submodule.get("ear.status")
    if isinstance(status, int) and not isinstance(status, bool):
        status = _STATUS_NUMBERS.get(status)
    if status not in STATUSES:
        raise Reject(Code.MALFORMED, "claims", "no such ear.status")
    vector = as_object(submodule.get("ear.trustworthiness-vector", {}), "claims vector")
    said = [str(status), *(_tier(value) for value in vector.values())]
    worst = max(said, key=STATUSES.index)
    # Who comes to no verdict on the whole affirms nothing by a part of it.
    return "none" if (status, worst) == ("none", "affirming") else worst


def _tier(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Reject(Code.MALFORMED, "claims", "a trust claim is a number")
    if -1 <= value <= 1:
        return "none"
    magnitude = value if value >= 0 else -value - 1
    bounds = ((32, "affirming"), (96, "warning"), (128, "contraindicated"))
    for bound, tier in bounds:
        if magnitude < bound:
            return tier
    raise Reject(Code.MALFORMED, "claims", f"trust claim {value}")
