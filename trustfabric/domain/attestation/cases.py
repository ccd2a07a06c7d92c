"""A document of evidence cases, judged one by one: `mcpctl attest verify`."""

from collections.abc import Callable, Iterator
from typing import NoReturn

from trustfabric.domain.attestation.appraisal import Expected, judge
from trustfabric.domain.attestation.case_kinds import QUESTIONS
from trustfabric.domain.attestation.casefile import Case, Question
from trustfabric.domain.attestation.model import Appraisal, Code, EvidenceKind
from trustfabric.domain.attestation.policy import DEFAULT_POLICY
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.documents import as_object, read_object
from trustfabric.domain.evidence.model import JsonValue, Reject
from trustfabric.errors import MalformedError

_MAX_DOCUMENT = 16 * 1024 * 1024


def judge_document(
    document: bytes,
    read: Callable[[str], bytes],
    anchors: Anchors,
    only: str | None = None,
) -> Iterator[dict[str, JsonValue]]:
    """Yield `{id, accept, code, status, tier, checks}` for each case.

    `read` returns the content of a file that the document names. What is wrong
    with the document or its files is a MalformedError, before the first answer.
    """
    cases = [_case(entry, read) for entry in _entries(document)]
    if only is not None:
        cases = [case for case in cases if case.id == only]
        if not cases:
            raise MalformedError(f"no case is named {only}")
    questions = [(case.id, _question(case, anchors)) for case in cases]
    return (_view(name, _answer(question)) for name, question in questions)


def _entries(document: bytes) -> list[object]:
    try:
        cases = read_object(document, "cases", _MAX_DOCUMENT).get("cases")
    except Reject as reject:
        raise MalformedError(str(reject)) from None
    if not isinstance(cases, list):
        raise MalformedError("a list of cases is wanted")
    return cases


def _case(entry: object, read: Callable[[str], bytes]) -> Case:
    try:
        case = Case(as_object(entry, "case"), read)
        case.text("kind")
    except Reject as reject:
        raise MalformedError(str(reject)) from None
    return case


def _question(case: Case, anchors: Anchors) -> Question:
    word = case.text("kind")
    if word not in QUESTIONS:
        return _unanswerable(Reject(Code.UNSUPPORTED, "kind", word))
    try:
        return QUESTIONS[EvidenceKind(word)](case, anchors)
    except Reject as reject:
        if reject.code is Code.UNSUPPORTED:
            return _unanswerable(reject)
        raise MalformedError(f"case {case.id}: {reject}") from None


def _unanswerable(reject: Reject) -> Question:
    """Ask nothing: what we don't understand is never accepted."""

    def present() -> NoReturn:
        raise reject

    return Question(
        kind=EvidenceKind.TPM, present=present, binding=b"", policy=DEFAULT_POLICY
    )


def _answer(question: Question) -> Appraisal:
    return judge(
        question.kind,
        question.present,
        expected=Expected(binding=question.binding),
        policy=question.policy,
        now=question.now,
    )


def _view(name: str, appraisal: Appraisal) -> dict[str, JsonValue]:
    return {
        "id": name,
        "accept": appraisal.accepted,
        "code": None if appraisal.accepted else appraisal.code.value,
        "status": appraisal.status.value,
        "tier": appraisal.tier.value if appraisal.accepted else None,
        "checks": [check.view() for check in appraisal.checks],
    }
