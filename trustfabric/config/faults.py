"""How a fault in the configuration is worded."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence

from pydantic_core import ErrorDetails

_WORDINGS: Mapping[str, str] = {
    "bool_parsing": "is not true or false",
    "bool_type": "is not true or false",
    "float_parsing": "is not a number",
    "finite_number": "is not a number",
    "int_from_float": "is not a whole number",
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "dict_type": "is not an object",
    "model_type": "is not an object",
    "json_invalid": "is not JSON",
    "list_type": "is not a list",
    "tuple_type": "is not a list",
    "path_not_directory": "is not a folder",
    "path_not_file": "is not a file",
    "string_type": "is not a string",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint such as ` (did you mean "vda"?)`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


def quoted(value: object) -> str:
    """Return a value as the operator wrote it, short and on one line."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004


def wording(
    detail: ErrorDetails,
    path: Sequence[int | str],
    keys: Iterable[str],
    *,
    secret: bool,
) -> str:
    """Word one fault; `path` leads into the value, `keys` are those it may have."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    where = f"${''.join(steps)}: " if path else ""
    return where + _said(detail, keys, secret=secret)


def _said(detail: ErrorDetails, keys: Iterable[str], *, secret: bool) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    shown = "the value" if secret else quoted(detail["input"])
    match kind:
        case "extra_forbidden":
            return f"unknown key{nearest(str(detail['loc'][-1]), keys)}"
        case "missing":
            return "is required"
        case "value_error":
            return str(context["error"])
        case "literal_error":
            words = str(context["expected"]).replace("'", "").replace(" or ", ", ")
            hint = nearest(str(detail["input"]), words.split(", "))
            return f"{shown} is not one of {words}{hint}"
        case _:
            said = detail["msg"].replace("Input should", "should")
            return f"{shown} {_WORDINGS.get(kind, said)}"
