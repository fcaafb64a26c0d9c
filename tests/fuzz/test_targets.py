"""A short part of `make fuzz`: the corpus, and what can be made of it by changing a little."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
CHANGED = 150


def _seeds(name: str) -> list[bytes]:
    folder = CORPUS / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def _changed(seed: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield the seed with bits flipped, pieces cut out, doubled, or overwritten."""
    for _ in range(CHANGED):
        data = bytearray(seed)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.randrange(len(data) + 1)
            length = rng.choice([1, 2, 4, 8, 64])
            match rng.randrange(4):
                case 0 if data:
                    data[at % len(data)] ^= 1 << rng.randrange(8)
                case 1:
                    del data[at : at + length]
                case 2:
                    data[at:at] = data[at : at + length]
                case _:
                    data[at : at + length] = rng.choice([b"\xff", b"\0", b"\x7f"]) * length
        yield bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_what_is_like_it(name: str) -> None:
    rng = random.Random(name)
    seeds = _seeds(name) or [b""]
    for seed in seeds:
        TARGETS[name](seed)
        for data in _changed(seed, rng):
            TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_anything(name: str) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=512))
    def try_it(data: bytes) -> None:
        TARGETS[name](data)

    try_it()


def test_every_corpus_is_of_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)
