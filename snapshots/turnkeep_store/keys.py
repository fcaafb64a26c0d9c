"""Keys of an encrypted repository: the master key that its owner keeps, and the data keys in it.

What lies on the disk is encrypted with *data keys*, which are random and stand in
`config/keys`, encrypted with the *master key*. So the master key can be exchanged
without touching anything else, and a new data key can be taken at any time: what is
written from then on uses it.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from turnkeep_store.errors import Damaged, LimitExceeded, UnsupportedFormat, WrongKey

KEY_BYTES = 32
KEYS_NAME = "keys"
MAX_KEYS = 1024

_MAGIC = b"TURNKEYS"
_VERSION = 1
_ID_BYTES = 16
_NONCE_BYTES = 12
_HEADER = struct.Struct(f"<8sI8s{_NONCE_BYTES}s")
_ROW = struct.Struct(f"<{_ID_BYTES}sq{KEY_BYTES}s")
MAX_FILE_BYTES = _HEADER.size + MAX_KEYS * _ROW.size + 16


@dataclass(frozen=True, slots=True)
class MasterKey:
    """The key that a repository's owner keeps: 32 random bytes."""

    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> MasterKey:
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str | bytes) -> MasterKey:
        """Read a key as `str` gives it: 32 bytes in base64; or as 64 hexadecimal digits.

        Raises:
            WrongKey: it is neither.
        """
        word = (text.decode("ascii", "replace") if isinstance(text, bytes) else text).strip()
        is_hex = len(word) == 2 * KEY_BYTES
        try:
            secret = bytes.fromhex(word) if is_hex else base64.b64decode(word, validate=True)
        except (ValueError, binascii.Error):
            secret = b""
        if len(secret) != KEY_BYTES:
            raise WrongKey("this is no key: it has to be 32 bytes in base64, as turnkeep key new prints them")
        return cls(secret)

    def __str__(self) -> str:
        return base64.b64encode(self.secret).decode()

    @property
    def id(self) -> bytes:
        """What tells this key from others and nothing of it, 8 bytes."""
        return blake3(self.secret, derive_key_context="turnkeep 2026 master key id").digest(length=8)


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key that files and databases are encrypted with; `id` stands in the files."""

    id: bytes
    created_ns: int
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> DataKey:
        return cls(secrets.token_bytes(_ID_BYTES), time.time_ns(), secrets.token_bytes(KEY_BYTES))

    def derive(self, salt: bytes, purpose: str) -> bytes:
        """Return a key of 32 bytes for one purpose (HKDF, RFC 5869, with SHA-256)."""
        return HKDF(SHA256(), KEY_BYTES, salt, f"turnkeep {purpose}".encode()).derive(self.secret)


@dataclass(frozen=True, slots=True)
class Keyring:
    """The data keys of a repository, the oldest first. What is written uses the last."""

    repository: bytes
    keys: tuple[DataKey, ...]

    @classmethod
    def new(cls, repository: bytes) -> Keyring:
        return cls(repository, (DataKey.new(),))

    @property
    def current(self) -> DataKey:
        return self.keys[-1]

    def find(self, key_id: bytes) -> DataKey:
        """Return the key of this id.

        Raises:
            Damaged: there is none.
        """
        for key in reversed(self.keys):
            if key.id == key_id:
                return key
        raise Damaged(f"encrypted with key {key_id.hex()}, which this repository does not have")

    def rotated(self) -> Keyring:
        """Return this keyring with a new current key.

        Raises:
            LimitExceeded: it has too many.
        """
        if len(self.keys) >= MAX_KEYS:
            raise LimitExceeded(f"{MAX_KEYS} data keys are in use; encrypt everything with the newest first")
        return Keyring(self.repository, (*self.keys, DataKey.new()))

    def alone(self) -> Keyring:
        """Return a keyring of the current key only."""
        return Keyring(self.repository, self.keys[-1:])

    def for_database(self, name: str) -> list[bytes]:
        """Return the keys that a database of this name may have, the one that it should have first."""
        return [key.derive(self.repository, f"database {name}") for key in reversed(self.keys)]

    def seal(self, master: MasterKey) -> bytes:
        """Return the bytes of `config/keys`."""
        header = _HEADER.pack(_MAGIC, _VERSION, master.id, nonce := secrets.token_bytes(_NONCE_BYTES))
        rows = b"".join(_ROW.pack(key.id, key.created_ns, key.secret) for key in self.keys)
        return header + AESGCM(master.secret).encrypt(nonce, rows, header + self.repository)

    @classmethod
    def unseal(cls, data: bytes, master: MasterKey, repository: bytes) -> Keyring:
        """Read `config/keys`.

        Raises:
            WrongKey: it was encrypted with another master key.
            Damaged: it is not what was written.
            UnsupportedFormat: a newer version wrote it.
        """
        header, sealed = data[: _HEADER.size], data[_HEADER.size :]
        if len(header) != _HEADER.size or header[:8] != _MAGIC:
            raise Damaged("config/keys does not begin as such a file")
        _, version, master_id, nonce = _HEADER.unpack(header)
        if version != _VERSION:
            raise UnsupportedFormat(f"config/keys: format {version}, this Turnkeep reads {_VERSION}; upgrade")
        if master_id != master.id:
            raise WrongKey("the repository was encrypted with another key than the given one")
        try:
            rows = AESGCM(master.secret).decrypt(nonce, sealed, header + repository)
        except InvalidTag:
            raise Damaged("config/keys is not what was written; put back a copy of it") from None
        if not rows or len(rows) % _ROW.size:
            raise Damaged("config/keys holds no keys")
        return cls(repository, tuple(_data_keys(rows)))


def _data_keys(rows: bytes) -> Iterable[DataKey]:
    for key_id, created_ns, secret in _ROW.iter_unpack(rows):
        yield DataKey(key_id, created_ns, secret)
