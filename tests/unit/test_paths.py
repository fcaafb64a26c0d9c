"""Paths of snapshots as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turnkeep.paths import ROOTFS, display, inside, slot_name

_NAMES = st.binary(min_size=1, max_size=8).filter(lambda name: b"/" not in name and b"\0" not in name)
_TARGETS = st.lists(_NAMES, max_size=9)  # short enough that no slot is cut


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"rootfs", "/"),
        (b"rootfs/etc/hosts", "/etc/hosts"),
        (b"%2Fdata", "/data"),
        (b"%2Fdata/a b", "/data/a b"),
        (b"rootfs/caf\xc3\xa9", "/café"),
        (b"rootfs/caf\xe9", "/caf\\xe9"),
        (b"rootfs/a%2Fb", "/a%2Fb"),
        (b"", "/"),
    ],
)
def test_what_people_see(path: bytes, shown: str) -> None:
    assert display(path) == shown


@given(st.binary())
def test_everything_can_be_shown(path: bytes) -> None:
    display(path).encode()


@given(_TARGETS)
def test_a_slot_leads_back_to_its_mount(parts: list[bytes]) -> None:
    target = b"/" + b"/".join(parts)
    slot = slot_name(target)
    assert b"/" not in slot
    assert slot != ROOTFS
    assert inside(slot) == target
    assert inside(slot + b"/x") == target + b"/x"


def test_long_targets_have_slots_of_their_own() -> None:
    """Else one mount's files would be restored into the other."""
    deep = b"/" + b"d" * 250
    slots = {slot_name(deep + b"/data"), slot_name(deep + b"/logs"), slot_name(b"/" + b"d" * 250)}
    assert len(slots) == 3
    assert all(len(slot) <= 255 for slot in slots)
