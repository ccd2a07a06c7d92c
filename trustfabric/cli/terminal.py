"""Foreign text made harmless for a terminal: shown, never obeyed.

Names, reasons and log lines come from guests and playbooks. Escape sequences,
carriage returns and bidirectional controls in them are printed as escapes.
"""

import re

LINE_LIMIT = 8192
"""Characters of one foreign line that a person is shown; the rest is counted."""

_CONTROLS = (
    "\x00-\x1f\x7f-\x9f"  # C0 (ESC, CR, LF and TAB among them), DEL, C1
    "\u00ad\u061c\u180e"  # soft hyphen, Arabic letter mark, Mongolian separator
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # zero width, line ends, bidi
    "\ufeff\ufff9-\ufffb\ud800-\udfff"  # byte order mark, annotations, surrogates
    "\U000e0000-\U000e007f"  # tag characters
)
_UNSAFE = re.compile(f"[{_CONTROLS}]")


def escape(text: str) -> str:
    r"""One line, safe to print: an ESC becomes the four characters `\x1b`."""
    safe = _UNSAFE.sub(_for_people, text[:LINE_LIMIT])
    if len(text) > LINE_LIMIT:
        return f"{safe}… [{len(text) - LINE_LIMIT} characters more]"
    return safe


def escape_lines(text: str) -> str:
    """Likewise, where line ends and tabs are part of the text."""
    return "\n".join(
        "\t".join(escape(cell) for cell in line.split("\t"))
        for line in text.split("\n")
    )


def escape_json(document: str) -> str:
    r"""JSON text in which such characters stand as `\uXXXX`: the same document.

    They can only occur inside strings there, once it is on one line.
    """
    return _UNSAFE.sub(_for_json, document)


def _for_people(found: re.Match[str]) -> str:
    code = ord(found[0])
    match found[0]:
        case "\n":
            return "\\n"
        case "\r":
            return "\\r"
        case "\t":
            return "\\t"
        case _:
            pass
    if code <= 0xFF:  # noqa: PLR2004 (one byte)
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004


def _for_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(
        f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2)
    )
