"""Reference values from versioned sets: what evidence may measure beside its policy.

A set is believed while it is active. A match with a deprecated one is trusted with a
warning until its date. A value of a revoked set is refused whoever else allows it,
and an image whose sets are all over is no image without reference values.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trustfabric.domain.attestation.checks import Judged, alternatives
from trustfabric.domain.attestation.model import Check, Code
from trustfabric.domain.attestation.policy import AppraisalPolicy, Digest, parse_policy
from trustfabric.domain.attestation.versions import State
from trustfabric.domain.evidence.model import EvidenceKind, JsonValue
from trustfabric.errors import InvalidError

MOST_VALUES: Final = 1024
"""In one set."""

_MOST_JOINED = 64 * 1024 * 1024
"""Bytes of a policy with the values of every set that concerns an instance."""

_PCR = re.compile(r"pcr-(?:(?:sha256|sha384|sha512)-)?(\d+)")
_NUMBER: Final = "(?:0|[1-9][0-9]{0,2})"
"""As checks are named: by any other spelling a set's state would not be looked up."""
_SNP: Final = ("amd-sev-snp", "measurements")
_TDX: Final = ("intel-tdx", "mrtd")
_NAMES: Mapping[EvidenceKind, re.Pattern[str]] = {
    EvidenceKind.TPM: re.compile(f"pcr-{_NUMBER}"),
    EvidenceKind.AMD_SEV_SNP: re.compile("measurement"),
    EvidenceKind.INTEL_TDX: re.compile("mrtd|rtmr-[0-3]"),
    EvidenceKind.COMPOSITE_AZURE_VTPM: re.compile(
        f"pcr-{_NUMBER}|measurement|mrtd|rtmr-[0-3]"
    ),
    EvidenceKind.NVIDIA_GPU: re.compile(f"measurement-{_NUMBER}"),
}


class ReferenceDocument(BaseModel):
    """What a set holds: for one kind of evidence, what each check may find."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: EvidenceKind
    values: Mapping[
        Annotated[str, Field(max_length=32)], Annotated[tuple[Digest, ...], Field()]
    ] = Field(min_length=1, max_length=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSet:
    """One version of a set, as far as a judgement needs it."""

    id: int
    name: str
    number: int
    state: State
    until: datetime | None
    kind: EvidenceKind
    values: Mapping[str, tuple[str, ...]]

    def in_force(self, now: datetime) -> bool:
        if self.state is State.DEPRECATED:
            return self.until is not None and now < self.until
        return self.state is State.ACTIVE

    def view(self) -> dict[str, JsonValue]:
        return {
            "id": self.id,
            "name": self.name,
            "version": self.number,
            "state": self.state.value,
            "until": None if self.until is None else self.until.isoformat(),
            "kind": self.kind.value,
            "values": {name: list(values) for name, values in self.values.items()},
        }

    @classmethod
    def from_view(cls, view: Mapping[str, Any]) -> "ReferenceSet":
        until = view["until"]
        return cls(
            id=int(view["id"]),
            name=str(view["name"]),
            number=int(view["version"]),
            state=State(view["state"]),
            until=None if until is None else datetime.fromisoformat(until),
            kind=EvidenceKind(view["kind"]),
            values={name: tuple(values) for name, values in view["values"].items()},
        )


def parse_references(document: Mapping[str, Any]) -> ReferenceDocument:
    """Read a set's document; what is wrong with it is InvalidError, by its place."""
    try:
        read = ReferenceDocument.model_validate_json(json.dumps(document))
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise InvalidError("document: " + "; ".join(faults[:20])) from None
    names = _NAMES.get(read.kind)
    if names is None:
        raise InvalidError(f"document.kind: {read.kind} has no reference values")
    for name, values in read.values.items():
        if not names.fullmatch(name):
            raise InvalidError(
                f"document.values.{name}: {read.kind} has no such check; "
                f"it has {names.pattern}"
            )
        if not values:
            raise InvalidError(f"document.values.{name}: no value")
    if sum(map(len, read.values.values())) > MOST_VALUES:
        raise InvalidError(f"document.values: more than {MOST_VALUES}")
    _joined(AppraisalPolicy(id="x", version=1), read.kind, read.values)
    return read


def with_references(
    policy: AppraisalPolicy, kind: EvidenceKind, sets: Iterable[ReferenceSet]
) -> AppraisalPolicy:
    """Let a policy know every value that ever stood in a set; `settle` sorts them."""
    known: defaultdict[str, list[str]] = defaultdict(list)
    for each in sets:
        if each.kind is kind:
            for name, values in each.values.items():
                known[name] += values
    return policy if not known else _joined(policy, kind, known)


def _joined(
    policy: AppraisalPolicy, kind: EvidenceKind, known: Mapping[str, Sequence[str]]
) -> AppraisalPolicy:
    document: Any = json.loads(policy.model_dump_json(by_alias=True))
    section = document["kinds"][kind.value]
    for name, values in known.items():
        place, key = _place(section, kind, name)
        place[key] = list(dict.fromkeys((*place.get(key, ()), *values)))
    return parse_policy(document, _MOST_JOINED)


def _place(section: Any, kind: EvidenceKind, name: str) -> tuple[dict[str, Any], str]:
    """Return where a policy of this kind keeps what the check of this name allows."""
    azure = kind is EvidenceKind.COMPOSITE_AZURE_VTPM
    if name == "measurement":
        return (section["snp"] if azure else section), _SNP[1]
    if name == "mrtd":
        return (section["tdx"] if azure else section), _TDX[1]
    word, _, index = name.partition("-")
    if word == "rtmr":
        return (section["tdx"] if azure else section)["rtmrs"], index
    if word == "pcr":
        return (section["tpm"] if azure else section)["pcrs"], index
    return section["measurements"], index


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A judgement after each measurement was looked up in the sets."""

    judged: Judged
    matched: tuple[Mapping[str, JsonValue], ...] = ()
    """The sets that a trusted measurement stands in."""
    until: datetime | None = None
    """When the first of the deprecated ones that it needs runs out."""


def settle(
    judged: Judged,
    policy: AppraisalPolicy,
    kind: EvidenceKind,
    sets: Iterable[ReferenceSet],
    now: datetime,
) -> Settled:
    """Sort what matched by the state of the sets it stands in.

    `policy` is the one before `with_references`: what it allows itself stays allowed.
    """
    ours = [each for each in sets if each.kind is kind]
    if not ours:
        return Settled(judged=judged)
    looked = _Lookup(policy, kind, ours, now)
    checks = tuple(looked.checked(each) for each in judged.checks)
    return Settled(
        judged=replace(
            judged, checks=checks, advisories=(*judged.advisories, *looked.advisories)
        ),
        matched=tuple(looked.matched),
        until=min(looked.ends, default=None),
    )


class _Lookup:
    """Looks measurements up, and gathers what came of it."""

    def __init__(
        self,
        policy: AppraisalPolicy,
        kind: EvidenceKind,
        sets: list[ReferenceSet],
        now: datetime,
    ) -> None:
        self._section = policy.document()["kinds"]
        self._kind = kind
        self._sets = sets
        self._now = now
        self.advisories: list[str] = []
        self.matched: list[Mapping[str, JsonValue]] = []
        self.ends: list[datetime] = []

    def checked(self, check: Check) -> Check:
        name = _name_of(check)
        known = [each for each in self._sets if name in each.values]
        if check.code is not Code.MEASUREMENT_UNKNOWN or not known:
            return check
        holding = [each for each in known if check.actual in each.values[name]]
        revoked = next((each for each in holding if each.state is State.REVOKED), None)
        own = self._own(name)
        good = [
            *own,
            *(v for s in known if s.in_force(self._now) for v in s.values[name]),
        ]
        allowed = alternatives(good) or "nothing: every set is over"
        told = replace(check, passed=False, expected=allowed)
        if revoked is not None:
            return replace(
                told,
                expected=f"not in {revoked.name} version {revoked.number}, revoked",
            )
        if check.actual not in good:
            return told
        self._note(name, [s for s in holding if s.in_force(self._now)], own, check)
        return replace(told, passed=True)

    def _own(self, name: str) -> tuple[str, ...]:
        assert isinstance(self._section, Mapping)
        place, key = _place(self._section[self._kind.value], self._kind, name)
        return tuple(place.get(key, ()))

    def _note(
        self,
        name: str,
        holding: list[ReferenceSet],
        own: tuple[str, ...],
        check: Check,
    ) -> None:
        active = [each for each in holding if each.state is State.ACTIVE]
        for each in active or holding:
            self.matched.append(
                {
                    "id": each.id,
                    "name": each.name,
                    "version": each.number,
                    "state": each.state.value,
                    "check": name,
                }
            )
        if active or check.actual in own:
            return
        # Of several deprecated sets the one that lasts longest carries it.
        last = max(holding, key=lambda each: each.until or self._now)
        assert last.until is not None
        self.ends.append(last.until)
        self.advisories.append(
            f"references {last.name} version {last.number} deprecated until "
            f"{last.until.isoformat()}"
        )


def _name_of(check: Check) -> str:
    """Return what a set calls the value of a check: registers without their bank."""
    register = _PCR.fullmatch(check.name)
    return check.name if register is None else f"pcr-{register[1]}"
