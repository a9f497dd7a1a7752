"""Keys and signatures: who a device is, and what a publisher vouches for. Ed25519 throughout.

Requests are signed one by one, so the server keeps no session: the signature covers method, path, time, a nonce
and the body's hash. Both sides build the signed text with `request_text`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import time
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from device_runtime.errors import InputError, StoreError, TrustError

SCHEME = "CoDA"
_HEADER = re.compile(r"CoDA ([0-9a-f]{32}):(\d{1,12}):([0-9a-f]{16}):([A-Za-z0-9_-]{85}[AQgw])")
"""64 bytes leave four bits of the last character unused: they are zero, so that a signature has one text only."""


class Signer:
    """Holds a private key. It is never printed, logged or sent."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self.public = key.verify_key.encode().hex()

    @classmethod
    def create(cls, path: Path) -> Signer:
        """Make a new key and store it, readable by its owner only.

        Raises:
            StoreError: the file exists, or cannot be written.
        """
        key = SigningKey.generate()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(key.encode().hex().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise StoreError(f"{path} exists; a key is never overwritten. Use it, or choose another path") from None
        except OSError as error:
            raise StoreError(f"cannot write the key file {path}: {error.strerror}") from None
        return cls(key)

    @classmethod
    def open(cls, path: Path) -> Signer:
        """Raises: StoreError: the file cannot be read or is not a key."""
        try:
            return cls(SigningKey(bytes.fromhex(path.read_text().strip())))
        except OSError as error:
            raise StoreError(f"cannot read the key file {path}: {error.strerror}") from None
        except Exception:  # nacl and hex errors alike; their text could quote the key
            raise StoreError(f"{path} does not hold an Ed25519 private key (64 hex digits)") from None

    @classmethod
    def open_or_create(cls, path: Path) -> Signer:
        return cls.open(path) if path.exists() else cls.create(path)

    def sign(self, data: bytes) -> str:
        """128 hex digits."""
        return self._key.sign(data).signature.hex()

    def authorization(self, device: str, method: str, path: str, body: bytes, now: float | None = None) -> str:
        """The value of the Authorization header for one request."""
        at = int(time.time() if now is None else now)
        nonce = secrets.token_hex(8)
        signature = self.sign(request_text(method, path, at, nonce, body))
        # a third shorter than hex; three such headers a round
        short = base64.urlsafe_b64encode(bytes.fromhex(signature)).rstrip(b"=").decode()
        return f"{SCHEME} {device}:{at}:{nonce}:{short}"


def key_id(public: str) -> str:
    """16 hex digits that name a public key."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:16]


def device_id(public: str) -> str:
    """32 hex digits that name a device: they follow from its key, so enrolling twice is harmless."""
    return hashlib.sha256(b"coda-device" + bytes.fromhex(public)).hexdigest()[:32]


def verify(public: str, data: bytes, signature: str) -> None:
    """Raises: TrustError: the signature was not made by that key over that data."""
    try:
        VerifyKey(bytes.fromhex(public)).verify(data, bytes.fromhex(signature))
    except (BadSignatureError, ValueError, TypeError):
        raise TrustError(f"the signature does not verify under the key {public[:16]}…") from None


def check_public_key(public: str) -> str:
    """The key in lower case. Raises: InputError: not 64 hex digits."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", public):
        raise InputError(f"a public key is 64 hex digits; given: {public[:80]!r}")
    return public.lower()


def request_text(method: str, path: str, at: int, nonce: str, body: bytes) -> bytes:
    """What a request's signature covers."""
    return f"coda-request\n{method}\n{path}\n{at}\n{nonce}\n{hashlib.sha256(body).hexdigest()}".encode()


def answer_text(nonce: str, body: bytes) -> bytes:
    """What the server's signature over a per-user answer covers: the request's nonce ties it to one request."""
    return f"coda-answer\n{nonce}\n{hashlib.sha256(body).hexdigest()}".encode()


def rotation_text(device: str, public: str) -> bytes:
    """What a new key signs to become a device's."""
    return f"coda-rotation\n{device}\n{public}".encode()


def parse_authorization(header: str) -> tuple[str, int, str, str]:
    """(device, time, nonce, signature in hex). Raises: TrustError: not of our form."""
    if not (match := _HEADER.fullmatch(header)):
        raise TrustError(f"the Authorization header is not of the form '{SCHEME} device:time:nonce:signature'")
    device, at, nonce, signature = match.groups()
    return device, int(at), nonce, base64.urlsafe_b64decode(f"{signature}==").hex()
