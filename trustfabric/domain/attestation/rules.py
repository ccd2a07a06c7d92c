"""Versions of documents read as what they are: policies, sets of reference values."""

from collections.abc import Mapping
from typing import Any

from trustfabric.domain.attestation.policy import AppraisalPolicy, parse_policy
from trustfabric.domain.attestation.references import ReferenceSet, parse_references
from trustfabric.domain.attestation.versions import Noun, Version
from trustfabric.errors import InvalidError


def check_content(noun: Noun, name: str, document: Mapping[str, Any]) -> None:
    """Raise InvalidError with every fault of a document that is to become a version."""
    if noun is Noun.POLICIES:
        read_policy(name, 1, document)
    else:
        parse_references(document)


def read_policy(name: str, number: int, document: Mapping[str, Any]) -> AppraisalPolicy:
    """Read a policy's document; its id and version are the name and number it has."""
    given = {"id", "version"} & document.keys()
    if given:
        raise InvalidError(f"document.{min(given)}: given by the name and its number")
    return parse_policy({**document, "id": name, "version": number})


def policy_of(version: Version) -> AppraisalPolicy:
    return read_policy(version.name, version.number, version.document)


def reference_set_of(version: Version) -> ReferenceSet:
    read = parse_references(version.document)
    return ReferenceSet(
        id=version.id,
        name=version.name,
        number=version.number,
        state=version.state,
        until=version.deprecated_until,
        kind=read.kind,
        values=read.values,
    )
