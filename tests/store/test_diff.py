"""What differs between two trees, and nothing else is read."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given
from turnkeep_store import diff as diff_module
from turnkeep_store.diff import diff, walk
from turnkeep_store.errors import LimitExceeded
from turnkeep_store.ids import BlobId, TreeId
from turnkeep_store.kinds import BlobKind
from turnkeep_store.tree import Directory, Entry, NodeType

from .test_chunks import DictSink
from .trees import put_tree


class Trees(DictSink):
    """A sink that reads directories and counts how often."""

    reads = 0

    def read_directory(self, tree: TreeId) -> Directory:
        self.reads += 1
        return Directory.decode(self.get(BlobId(tree)))


def _folder(sink: DictSink, name: bytes, *entries: Entry, mtime_ns: int = 0) -> Entry:
    directory = Directory({entry.name: entry for entry in entries})
    tree = TreeId(sink.put(directory.encode(), BlobKind.TREE))
    return Entry(
        name=name, type=NodeType.DIRECTORY, subtree=tree, digest=directory.digest(), mtime_ns=mtime_ns
    )


def _file(name: bytes, mtime_ns: int = 0) -> Entry:
    return Entry(name=name, type=NodeType.FILE, mtime_ns=mtime_ns)


def _root(entry: Entry) -> TreeId:
    assert entry.subtree is not None
    return entry.subtree


def _paths(trees: Trees, a: Entry | None, b: Entry | None) -> list[tuple[bytes, bool, bool]]:
    found = diff(trees, _root(a) if a else None, _root(b) if b else None)
    return [(each.path, each.before is not None, each.after is not None) for each in found]


def test_equal_trees_are_not_read() -> None:
    trees = Trees()
    root = _folder(trees, b"", _folder(trees, b"a", _file(b"x")))
    assert _paths(trees, root, root) == []
    assert trees.reads == 0


def test_equal_subtrees_are_not_read() -> None:
    trees = Trees()
    same = _folder(trees, b"same", _folder(trees, b"deep", _file(b"x")))
    old = _folder(trees, b"", same, _file(b"f", 1))
    new = _folder(trees, b"", same, _file(b"f", 2))
    assert _paths(trees, old, new) == [(b"f", True, True)]
    assert trees.reads == 2


def test_folders_appear_when_they_differ_themselves() -> None:
    trees = Trees()
    old = _folder(trees, b"", _folder(trees, b"d", _file(b"x", 1)), _folder(trees, b"t", mtime_ns=1))
    new = _folder(trees, b"", _folder(trees, b"d", _file(b"x", 2)), _folder(trees, b"t", mtime_ns=2))
    assert _paths(trees, old, new) == [(b"d/x", True, True), (b"t", True, True)]
    assert trees.reads == 4  # both roots and both `d`; `t` holds the same on both sides


def test_all_children_of_one_sided_folders_follow() -> None:
    trees = Trees()
    old = _folder(trees, b"", _folder(trees, b"gone", _folder(trees, b"d", _file(b"x"))), _file(b"kind"))
    new = _folder(trees, b"", _folder(trees, b"kind", _file(b"y")), _folder(trees, b"new"))
    assert _paths(trees, old, new) == [
        (b"gone", True, False),
        (b"gone/d", True, False),
        (b"gone/d/x", True, False),
        (b"kind", True, True),
        (b"kind/y", False, True),
        (b"new", False, True),
    ]
    assert _paths(trees, None, new) == [
        (b"kind", False, True),
        (b"kind/y", False, True),
        (b"new", False, True),
    ]
    assert _paths(trees, None, None) == []


def _deep(trees: Trees, depth: int) -> Entry:
    entry = _file(b"leaf")
    for _ in range(depth):
        entry = _folder(trees, b"d", entry)
    return entry


def test_ten_thousand_levels() -> None:
    trees = Trees()
    deep = _deep(trees, 10_000)
    paths = [path for path, _ in walk(trees, _root(deep))]
    assert len(paths) == 10_000
    assert paths[-1] == b"d/" * 9_999 + b"leaf"


def test_too_deep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff_module, "MAX_DEPTH", 20)
    trees = Trees()
    assert len(list(walk(trees, _root(_deep(trees, 20))))) == 20
    with pytest.raises(LimitExceeded):
        list(walk(trees, _root(_deep(trees, 21))))


PATHS = st.lists(st.sampled_from([b"a", b"a-b", b"b", b"c"]), min_size=1, max_size=3).map(b"/".join)
FILES = st.dictionaries(PATHS, st.sampled_from([b"", b"1", b"2"]), max_size=8)


def _consistent(files: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Leave out files whose name is also a folder's."""
    return {path: data for path, data in files.items() if not any(o.startswith(path + b"/") for o in files)}


@given(FILES, FILES)
def test_diff_is_the_difference_of_the_walks(old: dict[bytes, bytes], new: dict[bytes, bytes]) -> None:
    trees = Trees()
    a, _ = put_tree(trees, _consistent(old))
    b, _ = put_tree(trees, _consistent(new))
    before, after = dict(walk(trees, a)), dict(walk(trees, b))
    found = {each.path: (each.before, each.after) for each in diff(trees, a, b)}
    assert list(found) == sorted(found, key=lambda path: path.split(b"/"))
    for path in before.keys() | after.keys():
        pair = before.get(path), after.get(path)
        if path in found:
            assert found[path] == pair
        else:
            assert _own(pair[0]) == _own(pair[1])


def _own(entry: Entry | None) -> list[object]:
    return list(_attributes(entry)) if entry else []


def _attributes(entry: Entry) -> Iterator[object]:
    yield from (entry.type, entry.mode, entry.size, entry.mtime_ns, entry.content)
