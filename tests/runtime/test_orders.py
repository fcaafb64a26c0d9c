"""Orders: what is written, what is believed, what is removed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from turnkeep.errors import InvalidRequest, RestoreFailed
from turnkeep.runtime import orders
from turnkeep.runtime.shim import carry_out

from tests.runtime.shims import make_images

ID, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "orders"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path)


def test_an_order_is_taken_once(folder: Path, images: Path, tmp_path: Path) -> None:
    order = orders.place(folder, ID, images, tmp_path / "work")
    assert (folder.stat().st_mode & 0o777, (folder / ID).stat().st_mode & 0o777) == (0o700, 0o600)
    taken = carry_out.take(str(folder), ID)
    assert taken is not None
    assert (taken["image_path"], taken["options"]["tcp"]) == (order.image_path, "close")
    assert carry_out.take(str(folder), ID) is None
    assert orders.withdraw(folder, ID) is False


def test_withdraw_tells_whether_it_was_there(folder: Path, images: Path, tmp_path: Path) -> None:
    orders.place(folder, ID, images, tmp_path / "work")
    assert orders.withdraw(folder, ID) is True
    assert orders.withdraw(folder, ID) is False
    assert carry_out.take(str(folder), ID) is None


def test_a_later_order_replaces_an_earlier_one(folder: Path, images: Path, tmp_path: Path) -> None:
    orders.place(folder, ID, images, tmp_path / "first")
    orders.place(folder, ID, images, tmp_path / "second")
    taken = carry_out.take(str(folder), ID)
    assert taken is not None
    assert taken["work_path"] == str(tmp_path / "second")


@pytest.mark.parametrize("name", ["", "..", "web", "a" * 63, "A" * 64, f"../{ID}", ID + "\n"])
def test_only_full_ids(folder: Path, images: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest):
        orders.place(folder, name, images, tmp_path / "work")
    assert not folder.exists()


def test_images_that_others_can_write_are_refused(folder: Path, images: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(images)
    with pytest.raises(InvalidRequest):
        orders.place(folder, ID, link, tmp_path / "work")
    with pytest.raises(InvalidRequest):
        orders.place(folder, ID, Path("images"), tmp_path / "work")
    images.chmod(0o770)
    with pytest.raises(InvalidRequest):
        orders.place(folder, ID, images, tmp_path / "work")
    with pytest.raises(RestoreFailed):
        orders.place(folder, ID, tmp_path / "nowhere", tmp_path / "work")


def test_a_folder_that_others_can_enter_is_refused(folder: Path, images: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    with pytest.raises(InvalidRequest):
        orders.place(folder, ID, images, tmp_path / "work")
    (folder / ID).write_text("{}")
    assert carry_out.take(str(folder), ID) is None


@pytest.mark.parametrize("change", [{"boot_id": "another"}, {"expires_ns": 1}, {"container_id": OTHER}])
def test_what_is_not_believed_is_removed(
    folder: Path, images: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    orders.place(folder, ID, images, tmp_path / "work")
    values = json.loads((folder / ID).read_text()) | change
    (folder / ID).write_text(json.dumps(values))
    assert carry_out.take(str(folder), ID) is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"container_id": "%s"}' % ID.encode()])
def test_damaged_orders(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True, mode=0o700)
    (folder / ID).write_bytes(content)
    assert carry_out.take(str(folder), ID) is None
    assert list(folder.iterdir()) == []


def test_orders_that_others_could_write(folder: Path, images: Path, tmp_path: Path) -> None:
    orders.place(folder, ID, images, tmp_path / "work")
    (folder / ID).chmod(0o620)
    assert carry_out.take(str(folder), ID) is None
    orders.place(folder, ID, images, tmp_path / "work")
    os.rename(folder / ID, tmp_path / "elsewhere")
    (folder / ID).symlink_to(tmp_path / "elsewhere")
    assert carry_out.take(str(folder), ID) is None
    os.mkfifo(folder / ID, 0o600)
    assert carry_out.take(str(folder), ID) is None
    assert list(folder.iterdir()) == []


def test_clean_removes_what_is_of_no_use(folder: Path, images: Path, tmp_path: Path) -> None:
    assert orders.clean(folder) == []
    orders.place(folder, ID, images, tmp_path / "work")
    orders.place(folder, OTHER, images, tmp_path / "work", expires_s=-1)
    for name, age_s in (("tmp-1", 0), (f"{OTHER}.taken", 7200), (f"{ID}.restored", 7200), (f"{ID}.criu", 0)):
        (folder / name).touch()
        stamp = (folder / name).stat().st_mtime - age_s
        os.utime(folder / name, (stamp, stamp))
    assert orders.clean(folder) == [OTHER]
    assert sorted(path.name for path in folder.iterdir()) == [ID, f"{ID}.criu"]
