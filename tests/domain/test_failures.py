"""Every failure has its class and its tag."""

import pytest

from trustfabric.domain.failures import (
    FailureClass,
    FailureReason,
    classification_of,
    tag_of,
)
from trustfabric.domain.trust import Tag


@pytest.mark.parametrize("reason", FailureReason)
def test_every_reason_has_a_class_and_a_tag(reason: FailureReason) -> None:
    assert isinstance(classification_of(reason), FailureClass)
    assert isinstance(tag_of(reason), Tag)


def test_an_unknown_reason_is_structural() -> None:
    assert classification_of("moon-phase") is FailureClass.STRUCTURAL


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (FailureReason.PLAYBOOK_BUG, FailureClass.STRUCTURAL),
        (FailureReason.TIMEOUT, FailureClass.TRANSIENT),
        (FailureReason.APPROVAL_EXPIRED, FailureClass.CANCELLED),
    ],
)
def test_the_classes_are_those_of_the_contract(
    reason: FailureReason, kind: FailureClass
) -> None:
    assert classification_of(reason) is kind
