"""Secrets are kept, checked, read anew and never shown."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.config.environ import VARIABLES, fault
from trustfabric.config import load_settings
from trustfabric.config.settings import all_variables
from trustfabric.errors import ConfigError


def test_every_secret_is_marked_as_one() -> None:
    for section, variable, _ in all_variables():
        if section == "data_dir":
            continue
        field = next(
            field
            for _, field, other in type(getattr(load_settings({}), section)).variables()
            if other is variable
        )
        assert variable.secret == ("SecretStr" in str(field.annotation)), variable.name


def test_secrets_are_never_shown() -> None:
    settings = load_settings(
        {
            "DATABASE_URL": "postgresql://me:hunter2@db/x",
            "EXECUTOR_SECRET_API": "hunter2",
            "JWT_SECRET": "hunter2",
            "LIBVIRT_PASSWORD": "hunter2",
            "VM_HYPERVISOR_TOKEN": "hunter2",
        }
    )

    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


@pytest.mark.parametrize("name", [v.name for v in VARIABLES if v.secret])
@given(value=st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_a_fault_never_shows_a_secret(name: str, value: str) -> None:
    marked = f"hunter2{value}"
    try:
        load_settings({name: marked, "BIND_ADDRESS": "::"})
    except ConfigError as error:
        assert "hunter2" not in str(error)  # noqa: PT017


def test_secrets_of_playbooks_come_by_prefix() -> None:
    settings = load_settings({"EXECUTOR_SECRET_API_KEY": "k"})

    assert settings.executor.secrets == {"API_KEY": SecretStr("k")}


def test_a_short_secret_is_refused_where_others_can_reach_it() -> None:
    line = fault({"JWT_SECRET": "integration-secret", "BIND_ADDRESS": "0.0.0.0"})

    assert line.startswith("JWT_SECRET: is shorter than 32 bytes")


def test_a_short_secret_on_loopback_is_a_warning() -> None:
    settings = load_settings({"JWT_SECRET": "integration-secret"})

    assert settings.warnings[0].startswith("JWT_SECRET: is shorter than 32 bytes")


def test_no_secret_is_refused_where_others_can_reach_it() -> None:
    assert fault({"BIND_ADDRESS": "::"}).startswith("JWT_SECRET: is needed")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_no_secret_is_fine_on_loopback(address: str) -> None:
    assert load_settings({"BIND_ADDRESS": address}).auth.secret is None


def password_file(folder: Path, content: bytes, mode: int = 0o600) -> dict[str, str]:
    path = folder / "password"
    path.write_bytes(content)
    path.chmod(mode)
    return {"LIBVIRT_PASSWORD_FILE": str(path), "LIBVIRT_PASSWORD": "other"}


@pytest.mark.parametrize("content", [b"hunter2", b"hunter2\n", b"hunter2\r\n"])
def test_the_password_file_wins_and_loses_one_newline(
    tmp_path: Path, content: bytes
) -> None:
    settings = load_settings(password_file(tmp_path, content))

    assert settings.libvirt.read_password() == SecretStr("hunter2")


def test_the_password_file_is_read_anew(tmp_path: Path) -> None:
    settings = load_settings(password_file(tmp_path, b"old"))

    password_file(tmp_path, b"new")

    assert settings.libvirt.read_password() == SecretStr("new")


def test_a_password_file_that_went_away_is_an_error(tmp_path: Path) -> None:
    settings = load_settings(password_file(tmp_path, b"old"))

    (tmp_path / "password").unlink()

    with pytest.raises(ConfigError, match="No such file"):
        settings.libvirt.read_password()


def test_a_password_file_may_be_a_link(tmp_path: Path) -> None:
    environ = password_file(tmp_path, b"hunter2")
    link = tmp_path / "link"
    link.symlink_to(environ["LIBVIRT_PASSWORD_FILE"])

    settings = load_settings({"LIBVIRT_PASSWORD_FILE": str(link)})

    assert settings.libvirt.read_password() == SecretStr("hunter2")


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"hunter2", 0o644, "open to others"),
        (b"hunter2", 0o640, "open to others"),
        (b"", 0o600, "is empty"),
        (b"\n", 0o600, "is empty"),
        (b"hunter2\0", 0o600, "control characters"),
        (b"hunter2\n\n", 0o600, "control characters"),
        (b"hunter2" * 2000, 0o600, "longer than 4096 bytes"),
        (b"hunter2\xff", 0o600, "not UTF-8"),
    ],
)
def test_a_password_file_that_cannot_be_right_is_refused(
    tmp_path: Path, content: bytes, mode: int, said: str
) -> None:
    line = fault(password_file(tmp_path, content, mode))

    assert said in line
    assert "hunter2" not in line


def test_a_password_file_must_be_a_file(tmp_path: Path) -> None:
    line = fault({"LIBVIRT_PASSWORD_FILE": str(tmp_path)})

    assert line.endswith(("Is a directory", "is not a regular file"))
