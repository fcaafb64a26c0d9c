"""How one file is encrypted: in segments, so that any part of it can be read alone.

Each file has a key of its own, derived from a data key and a random salt in the
file's header. The file is a stream of segments, each encrypted with AES-256-GCM;
the nonce is the segment's number and whether it is the last one, so segments can
neither be exchanged nor cut off (the STREAM construction of Hoang, Reyhanitabar,
Rogaway and Vizar, "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance", 2015). The stream holds the content, zeros, and the content's
length; the zeros hide how long it is, as "Padme" does (Nikitin et al., "Reducing
Metadata Leakage from Encrypted Files and Communication with PURBs", 2019), for at
most 12 % more.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from turnkeep_store.durable import Bytes
from turnkeep_store.errors import Damaged, Headless
from turnkeep_store.keys import DataKey, Keyring

SEGMENT_BYTES = 16 * 1024
TAG_BYTES = 16
SEALED_BYTES = SEGMENT_BYTES + TAG_BYTES

_MAGIC = b"TURNSEAL"
_VERSION = 1
_SALT_BYTES = 32
_HEADER = struct.Struct(f"<8sI16s{_SALT_BYTES}s")
HEADER_BYTES = _HEADER.size
_NONCE = struct.Struct("<Q3xB")
LENGTH = struct.Struct("<Q")


class FileCipher:
    """The cipher of one file. Safe for use by many threads at once."""

    def __init__(self, header: bytes, key: DataKey) -> None:
        """Use `new` or `of`."""
        self.header = header
        self.key_id = key.id
        self._aead = AESGCM(key.derive(header[-_SALT_BYTES:], "file"))

    @classmethod
    def new(cls, key: DataKey) -> FileCipher:
        """Make the cipher of a file that is to be written."""
        header = _HEADER.pack(_MAGIC, _VERSION, key.id, secrets.token_bytes(_SALT_BYTES))
        return cls(header, key)

    @classmethod
    def of(cls, header: bytes, keyring: Keyring) -> FileCipher:
        """Return the cipher of the file that begins so.

        Raises:
            Headless: no encrypted file does.
            Damaged: its key or its version is not known.
        """
        if len(header) != HEADER_BYTES or header[:8] != _MAGIC:
            raise Headless("does not begin as an encrypted file")
        _, version, key_id, _ = _HEADER.unpack(header)
        if version != _VERSION:
            # Nothing vouches for the number yet, so it may as well be a bit that flipped.
            raise Damaged(f"format {version}: it is damaged, or a newer Turnkeep wrote it")
        return cls(header, keyring.find(key_id))

    def seal(self, number: int, data: Bytes, *, last: bool) -> bytes:
        """Return one segment, encrypted."""
        return self._aead.encrypt(_NONCE.pack(number, last), data, self.header)

    def open(self, number: int, sealed: Bytes, *, last: bool) -> bytes:
        """Return one segment's content.

        Raises:
            Damaged: it is not what was written there.
        """
        try:
            return self._aead.decrypt(_NONCE.pack(number, last), sealed, self.header)
        except (InvalidTag, ValueError):
            raise Damaged(f"segment {number} is not what was written") from None


@dataclass(frozen=True, slots=True)
class Shape:
    """What an encrypted file's size says of it."""

    stream_bytes: int
    """Content, zeros and length together; negative where it cannot be such a file."""

    @classmethod
    def of(cls, file_bytes: int) -> Shape:
        body = file_bytes - HEADER_BYTES
        return cls(body - -(-body // SEALED_BYTES) * TAG_BYTES)

    @property
    def last(self) -> int:
        """The number of the last segment."""
        return (self.stream_bytes - 1) // SEGMENT_BYTES


def padding(length: int) -> int:
    """Return how many zeros go between so much content and its length."""
    whole = length + LENGTH.size
    exponent = whole.bit_length() - 1
    mask = (1 << max(0, exponent - exponent.bit_length())) - 1
    return (whole + mask & ~mask) - whole
