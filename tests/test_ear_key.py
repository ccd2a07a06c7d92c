"""The key of attestation results in the data directory."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from trustfabric.drivers.ear import KeyFile, Signer
from trustfabric.errors import ConfigError, UnavailableError
from trustfabric.keys import ear_key_of, rotate_ear_key


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_it_is_made_once_for_us_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as several:
        files = list(several.map(ear_key_of, [tmp_path] * 8))

    names = {file.signer().kid for file in files}
    assert len(names) == 1
    assert stat.S_IMODE(files[0].path.stat().st_mode) == 0o600
    assert ear_key_of(tmp_path).signer().kid in names
    assert [path.name for path in tmp_path.iterdir()] == ["ear-key.pem"]


def test_a_rotated_key_is_another_for_us_alone(tmp_path: Path) -> None:
    file = ear_key_of(tmp_path)
    before = file.signer()

    kid = rotate_ear_key(tmp_path)

    assert file.signer().kid == kid != before.kid
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["ear-key.pem"]


def test_rotating_where_there_is_none_makes_one(tmp_path: Path) -> None:
    assert rotate_ear_key(tmp_path / "new") == ear_key_of(tmp_path / "new").signer().kid


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        pem(rsa.generate_private_key(65537, 2048)),
        pem(ec.generate_private_key(ec.SECP384R1())),
    ],
    ids=range(4),
)
def test_a_file_that_is_no_such_key_ends_the_start(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "ear-key.pem").write_bytes(content)

    with pytest.raises(ConfigError, match=r"ear-key\.pem"):
        ear_key_of(tmp_path)


def test_a_key_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        KeyFile(tmp_path / "none").signer()


def test_its_name_is_the_thumbprint_that_others_compute() -> None:
    signer = Signer.from_pem(pem(ec.generate_private_key(ec.SECP256R1())))

    token = signer.sign({"iat": 1})

    assert jwt.get_unverified_header(token)["kid"] == signer.jwk["kid"] == signer.kid
    assert len(signer.kid) == 43
    assert jwt.decode(token, jwt.PyJWK(signer.jwk).key, ["ES256"]) == {"iat": 1}


def test_it_never_shows_its_private_half() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = Signer.from_pem(pem(key))

    private = key.private_numbers().private_value
    assert "d" not in signer.jwk
    assert f"{private:x}" not in repr(signer)
