"""What the data directory keeps of a runtime: its name and its secrets."""

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from trustfabric.config import Settings
from trustfabric.drivers.ear import KeyFile, new_key
from trustfabric.errors import ConfigError, UnavailableError
from trustfabric.http.tokens import Tokens

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


def issue_token(settings: Settings, sub: int, role: str, ttl_s: int) -> str:
    """Return a bearer token of this installation."""
    expires = datetime.now(UTC) + timedelta(seconds=ttl_s)
    claims = {"sub": str(sub), "role": role, "exp": expires}
    return tokens_of(settings).issue(claims)


def ear_key_of(data_dir: Path) -> KeyFile:
    """Return what signs attestation results; makes the key the first time."""
    file = KeyFile(data_dir / "ear-key.pem")
    _made_once(file.path, new_key)
    try:
        file.signer()
    except UnavailableError as error:
        raise ConfigError([f"TRUSTFABRIC_DATA_DIR: {file.path}: {error}"]) from None
    return file


def rotate_ear_key(data_dir: Path) -> str:
    """Put a new key in place of that one and return its name.

    A running runtime signs with it from now on; the old public half stays published.
    """
    ear_key_of(data_dir)
    return KeyFile(keep(data_dir / "ear-key.pem", new_key())).signer().kid


def identity_key_of(data_dir: Path) -> bytes:
    """Return what names hardware in verdicts; makes the key the first time."""
    return _kept(data_dir / "identity-key", SECRET_BYTES).encode()


def runtime_id_of(data_dir: Path) -> str:
    """Return the runtime's name: the same after every restart on this directory."""
    return f"rt-{_kept(data_dir / 'runtime-id', 8)}"


@contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """Keep other runtimes off this data directory. ConfigError where one is on it."""
    _make_directory(data_dir)
    lock = data_dir / "runtime.lock"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError([f"TRUSTFABRIC_DATA_DIR: {lock}: {error.strerror}"]) from None
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
    text = _made_once(path, lambda: secrets.token_hex(size))
    if text is None or len(text) < 2 * size:
        raise ConfigError([f"TRUSTFABRIC_DATA_DIR: {path} is damaged: remove it"])
    return text


def _made_once(path: Path, make: Callable[[], str]) -> str | None:
    _make_directory(path.parent)
    try:
        text = _read(path)
        if text is None:
            _write(path, make())
            text = _read(path)
    except OSError as error:
        raise ConfigError([f"TRUSTFABRIC_DATA_DIR: {path}: {error.strerror}"]) from None
    return text


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Make the file whole or not at all; the first of several keeps its text."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()


def _make_directory(data_dir: Path) -> None:
    try:
        # Others may pass through it, to what is made for them: a run's own directory,
        # the database's socket. What is secret inside is readable by us only.
        data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            [f"TRUSTFABRIC_DATA_DIR: {data_dir}: {error.strerror}"]
        ) from None
