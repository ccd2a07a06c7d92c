"""Run data in an API call: `${name}`, typed, over a fixed set of names.

In a document, a text that is one reference becomes the value with its type; a
reference inside a longer text becomes its text. Documents are built as values and
encoded afterwards, so that no value can change the shape of what is sent.

    ${run_id} ${instance_id} ${instance_name} ${server_id} ${owner_id} ${playbook}
    ${attempt}           the run
    ${payload/POINTER}   the run's automation_payload, which holds its parameters
    ${metadata/POINTER}  the run's metadata
    ${response/POINTER}  the JSON that the request before this one was answered with
    $${                  a plain ${
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from trustfabric.domain.pointers import MISSING, check_pointer, find
from trustfabric.errors import InvalidError

FACTS = (
    "run_id",
    "instance_id",
    "instance_name",
    "server_id",
    "owner_id",
    "playbook",
    "attempt",
)
DOCUMENTS = ("payload", "metadata", "response")
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]{0,500})\}")


def check_template(template: Any, name: str) -> None:
    """Raise InvalidError where a reference is to nothing that a run has."""
    match template:
        case str():
            for found in _REFERENCE.finditer(template):
                if found[1] is not None:
                    _check_reference(found[1], name)
        case Mapping():
            for key, value in template.items():
                check_template(value, f"{name}.{key}")
        case list():
            for number, value in enumerate(template):
                check_template(value, f"{name}[{number}]")
        case _:
            pass


def filled(template: Any, data: Mapping[str, Any]) -> Any:
    """Return the document with its references replaced. InvalidError."""
    match template:
        case str():
            whole = _REFERENCE.fullmatch(template)
            if whole is not None and whole[1] is not None:
                return _value(whole[1], data)
            return _REFERENCE.sub(lambda found: _text(found, data), template)
        case Mapping():
            return {key: filled(value, data) for key, value in template.items()}
        case list():
            return [filled(value, data) for value in template]
        case _:
            return template


def filled_text(template: str, data: Mapping[str, Any]) -> str:
    """Return a text with its references replaced by texts. InvalidError."""
    return _REFERENCE.sub(lambda found: _text(found, data), template)


def filled_url(template: str, data: Mapping[str, Any]) -> str:
    """Return a URL in which each value is one segment, or one value of the query."""

    def escaped(found: re.Match[str]) -> str:
        text = _text(found, data)
        if text in {"", ".", ".."}:
            raise InvalidError(f"url: ${{{found[1]}}} is {text!r}, which is no name")
        return quote(text, safe="")

    return _REFERENCE.sub(escaped, template)


def uses_references(text: str) -> bool:
    """Whether a text has any reference."""
    return any(found[1] is not None for found in _REFERENCE.finditer(text))


def _check_reference(reference: str, name: str) -> None:
    root, slash, rest = reference.partition("/")
    if root in FACTS and not slash:
        return
    if root not in DOCUMENTS:
        known = ", ".join((*FACTS, *(f"{one}/…" for one in DOCUMENTS)))
        raise InvalidError(f"metadata.{name}: ${{{reference}}} is none of {known}")
    try:
        check_pointer(slash + rest)
    except InvalidError as error:
        raise InvalidError(f"metadata.{name}: ${{{reference}}}: {error}") from None


def _value(reference: str, data: Mapping[str, Any]) -> Any:
    root, slash, rest = reference.partition("/")
    found = find(data.get(root, MISSING), slash + rest)
    if found is MISSING:
        raise InvalidError(f"${{{reference}}}: this run has nothing there")
    return found


def _text(found: re.Match[str], data: Mapping[str, Any]) -> str:
    if found[1] is None:
        return "${"
    value = _value(found[1], data)
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case _:
            raise InvalidError(f"${{{found[1]}}}: not a text or number")
