"""One case of a document: its fields, its files, and the question it comes to."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from trustfabric.domain.attestation.appraisal import Evidence
from trustfabric.domain.attestation.model import Code, EvidenceKind
from trustfabric.domain.attestation.policy import AppraisalPolicy, Kinds
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.documents import as_object, hex_bytes, text
from trustfabric.domain.evidence.model import Reject

_CHECK = "case"
_TIMELESS = datetime(1970, 1, 1, tzinfo=UTC)
"""Where nothing that is judged has a date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Everything that one judgement depends on."""

    kind: EvidenceKind
    present: Callable[[], tuple[Evidence, Anchors]]
    """Parses what the files hold; what is wrong with that is the evidence's fault."""
    binding: bytes
    policy: AppraisalPolicy
    now: datetime = _TIMELESS


class PolicyWords(BaseModel):
    """What a case's policy may say; each kind has its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Words = TypeVar("Words", bound=PolicyWords)


class Case:
    """Reads fields and files; a field of the wrong shape is a Reject."""

    def __init__(
        self, fields: Mapping[str, object], read: Callable[[str], bytes]
    ) -> None:
        self._fields = fields
        self._read = read
        self.id = text(fields, "id", _CHECK)

    def text(self, key: str) -> str:
        return text(self._fields, key, _CHECK)

    def has(self, key: str) -> bool:
        return self._fields.get(key) is not None

    def hex(self, key: str) -> bytes:
        return hex_bytes(self._fields.get(key), f"{_CHECK} {key}")

    def file(self, key: str) -> bytes:
        return self.named_file(self.text(key))

    def named_file(self, name: str) -> bytes:
        try:
            return self._read(name)
        except (OSError, ValueError) as error:
            raise Reject(Code.MALFORMED, _CHECK, f"{name}: {error}") from None

    def optional_file(self, name: str) -> bytes | None:
        try:
            return self._read(name)
        except (OSError, ValueError):
            return None

    def now(self) -> datetime:
        try:
            now = datetime.fromisoformat(self.text("now"))
        except ValueError:
            raise Reject(Code.MALFORMED, _CHECK, "now: not a time") from None
        return now if now.tzinfo else now.replace(tzinfo=UTC)

    def policy(self, words: type[Words]) -> Words:
        """Read its own words for a policy; one that we don't know is unsupported."""
        members = as_object(self._fields.get("policy", {}), f"{_CHECK} policy")
        said = {key: value for key, value in members.items() if value is not None}
        try:
            return words.model_validate_json(json.dumps(said))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            unknown = fault["type"] == "extra_forbidden"
            raise Reject(
                Code.UNSUPPORTED if unknown else Code.MALFORMED,
                f"{_CHECK} policy",
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}",
            ) from None


def case_policy(kinds: Kinds) -> AppraisalPolicy:
    return AppraisalPolicy(id="case", version=1, kinds=kinds)
