"""The documents say what the code does."""

from pathlib import Path

from trustfabric.config.table import variable_table

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
