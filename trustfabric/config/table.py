"""The documents' table of every variable, written from the sections themselves.

`python -m trustfabric.config.table` prints it.
"""

from collections.abc import Iterator

from trustfabric.config.remediation import SECRET_PREFIX
from trustfabric.config.settings import all_variables


def variable_table() -> str:
    """Return every variable with its default and meaning, as a Markdown table."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "| variable | default | meaning |"
    yield "| --- | --- | --- |"
    for _, variable, default in all_variables():
        unset = variable.unset or _shown(default)
        yield f"| `{variable.name}` | {unset} | {variable.means}. |"
    yield (
        f"| `{SECRET_PREFIX}<NAME>` | none | The secret that a playbook names "
        "`secret:<NAME>`. |"
    )


def _shown(default: object) -> str:
    match default:
        case bool():
            return f"`{str(default).lower()}`"
        case float():
            return f"`{default:g}`"
        case tuple():
            return f"`{':'.join(map(str, default))}`"
        case _:
            return f"`{default}`"


if __name__ == "__main__":
    print(variable_table(), end="")  # noqa: T201
