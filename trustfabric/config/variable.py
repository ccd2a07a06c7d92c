"""What a setting is: a field of a section, fed by one variable."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo


@dataclass(frozen=True, slots=True)
class Variable:
    """Annotates a field of a section with the variable that it is read from."""

    name: str
    means: str
    """One sentence for the operator, in Markdown."""
    unset: str = ""
    """What holds while it is not set, where the default does not say it."""
    secret: bool = False
    """Its value is never shown, also not where it is wrong."""
    template: type[BaseModel] | None = None
    """Its value is JSON of this shape."""


class Section(BaseModel):
    """The settings of one subject; what a part of the product is handed."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    @classmethod
    def variables(cls) -> Iterator[tuple[str, FieldInfo, Variable]]:
        """Yield field name, field and variable of each setting, in order."""
        for name, field in cls.model_fields.items():
            for extra in field.metadata:
                if isinstance(extra, Variable):
                    yield name, field, extra


def _split(value: object) -> object:
    return (
        re.split(r"[\s,]+", value.strip(", \t\n")) if isinstance(value, str) else value
    )


Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""A list, written with commas or blanks between."""

Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
