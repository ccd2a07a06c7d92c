"""The documents say what the code does."""

import json
from pathlib import Path
from typing import Any

from trustfabric.config.table import variable_table
from trustfabric.domain.attestation.references import parse_references
from trustfabric.domain.attestation.rules import read_policy

ROOT = Path(__file__).parents[1]


def test_the_table_of_variables_is_the_codes_own() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text()

    table = document.split("<!-- table -->\n")[1].split("<!-- /table -->")[0]

    assert table == variable_table()


def test_every_make_target_that_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = {
        line.split(":")[0]
        for line in (ROOT / "Makefile").read_text().splitlines()
        if ":" in line and line[0].isalpha()
    }

    named = {part.split("`")[0].split()[0] for part in readme.split("`make ")[1:]}

    assert named <= targets


def _example(name: str) -> dict[str, Any]:
    document = (ROOT / "docs" / "attestation.md").read_text()
    text = document.split(f"<!-- example: {name} -->\n```json\n")[1].split("```")[0]
    example: dict[str, Any] = json.loads(text)
    return example


def test_the_policy_that_the_documents_show_can_be_used() -> None:
    assert read_policy("prod", 1, _example("policy")).kinds.tpm.required_pcrs == (0, 7)


def test_the_reference_values_that_the_documents_show_can_be_used() -> None:
    assert set(parse_references(_example("references")).values) == {"pcr-0", "pcr-7"}
