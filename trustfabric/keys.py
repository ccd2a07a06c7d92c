"""What the data directory keeps of a runtime: its name and its signing secret."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trustfabric.config import Settings
from trustfabric.errors import ConfigError
from trustfabric.http.auth import Tokens

SECRET_BYTES = 48


def tokens_of(settings: Settings) -> Tokens:
    """Return what signs this runtime's tokens; makes its secret the first time."""
    auth = settings.auth
    if auth.secret is not None:
        secret = auth.secret.get_secret_value()
    elif settings.http.on_loopback:
        secret = _kept(settings.data_dir / "jwt-secret", SECRET_BYTES)
    else:
        raise ConfigError(
            ["JWT_SECRET: must be set where others than this machine can connect"]
        )
    return Tokens(secret, auth.issuer, auth.audience)


def runtime_id_of(data_dir: Path) -> str:
    """Return the runtime's name: the same after every restart on this directory."""
    return f"rt-{_kept(data_dir / 'runtime-id', 8)}"


@contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """Keep other runtimes off this data directory. ConfigError where one is on it."""
    # Others may pass through it, to what is made for them: a run's own directory,
    # the database's socket. What is secret inside is readable by us only.
    data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    descriptor = os.open(data_dir / "runtime.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                [f"TRUSTFABRIC_DATA_DIR: another runtime uses {data_dir}"]
            ) from None
        yield
    finally:
        os.close(descriptor)


def keep(path: Path, text: str) -> Path:
    """Write a file that only we can read, in place of the one that was there."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(
        os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
    ) as file:
        file.write(text)
    fresh.replace(path)
    return path


def _kept(path: Path, size: int) -> str:
    """Return a random text that is made once and then kept, readable by us only."""
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        text = secrets.token_hex(size)
        file.write(text)
    return text
