"""A stored verdict as one document: everything that it was come to with.

Whoever has it can judge the same evidence again with nothing but the makers' roots,
as of the time it was judged, and must come to the same code.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from trustfabric.domain.attestation.appraisal import Expected
from trustfabric.domain.attestation.basis import Basis, judge_by
from trustfabric.domain.attestation.collateral import (
    digest_of,
    document_of,
    from_document,
)
from trustfabric.domain.attestation.launch import LaunchDigest
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.evidence.anchors import Anchors, Collateral
from trustfabric.domain.evidence.documents import read_object
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import EvidenceKind, JsonValue, Reject
from trustfabric.domain.evidence.tpm2 import TpmClock
from trustfabric.errors import InvalidError, MalformedError, NotFoundError

SCHEMA = 2
_READ = (1, SCHEMA)
"""What was written before there was collateral is read too."""
MEMBER = "stored"
"""The one key of such a document."""
_MAX_DOCUMENT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What evidence of one attester is judged with, beside policy and roots."""

    keys: Sequence[EnrolledKey] = ()
    last_seen: TpmClock | None = None
    launch: LaunchDigest | None = None
    collateral: Collateral | None = None
    """Kept apart, once for all that were judged with it; here stands its digest."""
    device: str | None = None
    """Which device an accelerator was before."""
    elsewhere: bool = False
    """Whether that which answers is another accelerator, too."""

    def beside(self, anchors: Anchors) -> Anchors:
        """Return the roots with what counts for this attester only."""
        return replace(anchors, keys=tuple(self.keys), collateral=self.collateral)

    def expected(self, binding: bytes) -> Expected:
        """Return what evidence that carries `binding` is held to."""
        return Expected(
            binding=binding,
            last_seen=self.last_seen,
            launch=self.launch,
            device=self.device,
            elsewhere=self.elsewhere,
        )

    def document(self) -> dict[str, JsonValue]:
        launch: Any = None
        if self.launch is not None:
            launch = asdict(self.launch)
            launch["measurement"] = self.launch.measurement.hex()
        return {
            "keys": [key.document() for key in self.keys],
            "last_seen": None if self.last_seen is None else asdict(self.last_seen),
            "launch": launch,
            "collateral": None
            if self.collateral is None
            else digest_of(self.collateral).hex(),
            **self._of_accelerator(),
        }

    def _of_accelerator(self) -> dict[str, JsonValue]:
        if self.device is None and not self.elsewhere:
            return {}
        return {"device": self.device, "elsewhere": self.elsewhere}

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], collateral: Mapping[str, Any] | None
    ) -> "Inputs":
        """Read what `document` wrote, and the collateral that was kept apart.

        Reject, LookupError, TypeError or ValueError.
        """
        seen, launch = document["last_seen"], document["launch"]
        if launch is not None:
            measurement = bytes.fromhex(launch["measurement"])
            launch = LaunchDigest(**{**launch, "measurement": measurement})
        return cls(
            keys=tuple(EnrolledKey.from_document(each) for each in document["keys"]),
            last_seen=None if seen is None else TpmClock(**seen),
            launch=launch,
            collateral=_collateral(document.get("collateral"), collateral),
            device=document.get("device"),
            elsewhere=bool(document.get("elsewhere")),
        )


def _collateral(
    digest: str | None, kept: Mapping[str, Any] | None
) -> Collateral | None:
    """Return the collateral of this digest, which must be what was kept."""
    found = None if kept is None else from_document(kept)
    if digest != (None if found is None else digest_of(found).hex()):
        raise ValueError("it was judged with other collateral")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVerdict:
    """A verdict, and all that it rests on but the makers' roots."""

    attestation_id: int
    instance: str
    kind: EvidenceKind
    evidence: bytes
    binding: bytes
    inputs: Inputs
    basis: Basis
    verified_at: datetime
    code: str
    status: str

    @classmethod
    def from_columns(
        cls,
        attestation_id: int,
        instance: str,
        kept: Mapping[str, Any],
        collateral: Mapping[str, Any] | None,
    ) -> "StoredVerdict":
        """Read what was kept with a verdict. NotFoundError where that is not enough."""
        missing = [name for name, value in kept.items() if value is None]
        if missing:
            raise NotFoundError(
                f"attestation {attestation_id} has no {' and no '.join(missing)}: "
                "it can't be judged again"
            )
        return cls(
            attestation_id=attestation_id,
            instance=instance,
            kind=EvidenceKind(kept["kind"]),
            evidence=bytes(kept["evidence"]),
            binding=bytes(kept["binding"]),
            inputs=Inputs.from_document(kept["inputs"], collateral),
            basis=Basis.from_document(kept["basis"]),
            verified_at=kept["verified_at"],
            code=kept["code"],
            status=kept["status"],
        )

    def document(self) -> dict[str, JsonValue]:
        collateral = self.inputs.collateral
        return {
            MEMBER: {
                "schema": SCHEMA,
                "attestation_id": self.attestation_id,
                "instance_id": self.instance,
                "kind": self.kind.value,
                "evidence": base64.b64encode(self.evidence).decode(),
                "binding": self.binding.hex(),
                "inputs": self.inputs.document(),
                "collateral": None if collateral is None else document_of(collateral),
                "basis": self.basis.document(),
                "verified_at": self.verified_at.isoformat(),
                "code": self.code,
                "status": self.status,
            }
        }


def is_stored(document: bytes) -> bool:
    """Tell whether a document is one verdict, not a list of cases."""
    try:
        return MEMBER in read_object(document, "document", _MAX_DOCUMENT)
    except Reject:
        return False


def parse_stored(document: bytes) -> StoredVerdict:
    """Read what `StoredVerdict.document` wrote, or raise MalformedError."""
    try:
        whole: Any = read_object(document, "document", _MAX_DOCUMENT)
        said = _of_our_schema(whole[MEMBER])
        return StoredVerdict(
            attestation_id=int(said["attestation_id"]),
            instance=str(said["instance_id"]),
            kind=EvidenceKind(said["kind"]),
            evidence=base64.b64decode(said["evidence"], validate=True),
            binding=bytes.fromhex(said["binding"]),
            inputs=Inputs.from_document(said["inputs"], said.get("collateral")),
            basis=Basis.from_document(said["basis"]),
            verified_at=datetime.fromisoformat(said["verified_at"]),
            code=str(said["code"]),
            status=str(said["status"]),
        )
    except (
        Reject,
        InvalidError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise MalformedError(f"no stored verdict: {error!r}"[:500]) from None


def _of_our_schema(said: Any) -> Any:
    if said["schema"] not in _READ:
        raise ValueError(f"schema {said['schema']}, where this program reads {SCHEMA}")
    return said


def judge_again(
    stored: StoredVerdict, anchors: Anchors, basis: Basis | None = None
) -> Appraisal:
    """Judge as of when it was judged; by another basis where one is given."""
    return judge_by(
        basis or stored.basis,
        stored.kind,
        stored.evidence,
        expected=stored.inputs.expected(stored.binding),
        anchors=stored.inputs.beside(anchors),
        now=stored.verified_at,
    )


def verdict_view(stored: StoredVerdict, again: Appraisal) -> dict[str, JsonValue]:
    """Show a second judgement beside the first, as `mcpctl attest verify` prints it."""
    return {
        "id": f"attestation-{stored.attestation_id}",
        "accept": again.accepted,
        "code": None if again.accepted else again.code.value,
        "status": again.status.value,
        "tier": again.tier.value if again.accepted else None,
        "recorded_code": stored.code,
        "agrees": again.code.value == stored.code,
        "checks": [check.view() for check in again.checks],
    }


def dump(stored: StoredVerdict) -> bytes:
    return json.dumps(stored.document(), indent=1).encode()
