"""Quotes made by a TPM that is a few lines of Python: any key, bank and scheme."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.tpm2 import BANKS

AK_ATTRIBUTES = 0x0005_0472
HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
CURVE_IDS = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}
NONCE = bytes(range(32))
RSASSA, RSAPSS, ECDSA = 0x14, 0x16, 0x18

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def sized(data: bytes) -> bytes:
    return u16(len(data)) + data


@dataclass(frozen=True, kw_only=True)
class FakeTpm:
    """Signs what it is told to, as a TPM with this key would."""

    key: Key
    hash: str = "sha256"
    scheme: int = ECDSA
    resets: int = 7
    restarts: int = 0
    clock: int = 1000

    def enrolled(self, endorser: str = "maker") -> EnrolledKey:
        pem = self.key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        return EnrolledKey.from_pem(pem, endorser)

    def attest(
        self, pcrs: Mapping[int, bytes], bank: str = "sha256", nonce: bytes = NONCE
    ) -> bytes:
        mask = sum(1 << index for index in pcrs)
        values = b"".join(pcrs[index] for index in sorted(pcrs))
        return b"".join(
            (
                bytes.fromhex("FF544347 8018"),
                sized(b"\0\x0b" + bytes(32)),
                sized(nonce),
                self.clock.to_bytes(8, "big"),
                self.resets.to_bytes(4, "big"),
                self.restarts.to_bytes(4, "big"),
                b"\x01",
                bytes(8),
                (1).to_bytes(4, "big"),
                u16(BANKS.get(bank, 4)),
                b"\x03",
                mask.to_bytes(3, "little"),
                sized(hashlib.new(self.hash, values).digest()),
            )
        )

    def sign(self, attest: bytes) -> bytes:
        head = u16(self.scheme) + u16(BANKS[self.hash])
        algorithm = HASHES[self.hash]
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            size = (self.key.key_size + 7) // 8
            r, s = decode_dss_signature(self.key.sign(attest, ec.ECDSA(algorithm)))
            return (
                head + sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))
            )
        scheme: padding.AsymmetricPadding = padding.PKCS1v15()
        if self.scheme == RSAPSS:
            scheme = padding.PSS(padding.MGF1(algorithm), padding.PSS.MAX_LENGTH)
        return head + sized(self.key.sign(attest, scheme, algorithm))

    def public(
        self, attributes: int = AK_ATTRIBUTES, scheme_hash: str = "sha256"
    ) -> bytes:
        """TPMT_PUBLIC."""
        start = attributes.to_bytes(4, "big") + u16(0) + u16(0x10)
        scheme = u16(self.scheme) + u16(BANKS[scheme_hash])
        public = self.key.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            n = public.public_numbers().n
            unique = sized(n.to_bytes(public.key_size // 8, "big"))
            shape = u16(public.key_size) + bytes(4)
            return u16(1) + u16(0xB) + start + scheme + shape + unique
        size = (public.curve.key_size + 7) // 8
        numbers = public.public_numbers()
        unique = sized(numbers.x.to_bytes(size, "big")) + sized(
            numbers.y.to_bytes(size, "big")
        )
        shape = u16(CURVE_IDS[public.curve.name]) + u16(0x10)
        return u16(0x23) + u16(0xB) + start + scheme + shape + unique
