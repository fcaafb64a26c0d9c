"""Changing one member of a JSON text, and nothing else of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turnkeep.runtime.json_text import keys, with_member, without_member

ENTRY = {"path": "/x"}

INDENTED = """{
    "debug": true,
    "big": 1e3,
    "runtimes": {
        "other": {
            "path": "/o"
        }
    }
}
"""


def test_what_is_added_looks_like_its_neighbours() -> None:
    assert with_member(INDENTED, ("runtimes",), "turnkeep", ENTRY) == (
        INDENTED.replace(
            "        }\n    }\n",
            '        },\n        "turnkeep": {\n            "path": "/x"\n        }\n    }\n',
        )
    )
    assert with_member('{\n\t"a": 1\n}\n', (), "runtimes", {"turnkeep": ENTRY}) == (
        '{\n\t"a": 1,\n\t"runtimes": {\n\t\t"turnkeep": {\n\t\t\t"path": "/x"\n\t\t}\n\t}\n}\n'
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{}\n", '{\n  "k": {\n    "path": "/x"\n  }\n}\n'),
        ("{\n}", '{\n  "k": {\n    "path": "/x"\n  }\n}'),
        ('{"a":1}', '{"a":1,"k":{"path":"/x"}}'),
        ('{"a": 1}', '{"a": 1, "k": {"path": "/x"}}'),
        ('{"a": "}", "b" : [1,\n 2]}', '{"a": "}", "b" : [1,\n 2], "k" : {"path": "/x"}}'),
    ],
)
def test_in_every_style(before: str, after: str) -> None:
    assert with_member(before, (), "k", ENTRY) == after


def test_into_an_empty_object() -> None:
    assert with_member('{"runtimes": {}}', ("runtimes",), "k", ENTRY) == (
        '{"runtimes": {"k": {"path": "/x"}}}'
    )
    assert with_member('{\n  "runtimes": { }\n}', ("runtimes",), "k", ENTRY) == (
        '{\n  "runtimes": {\n    "k": {\n      "path": "/x"\n    }\n  }\n}'
    )


@pytest.mark.parametrize(
    ("key", "after"),
    [("a", '{ "b": 2, "c": 3 }'), ("b", '{ "a": 1, "c": 3 }'), ("c", '{ "a": 1, "b": 2 }')],
)
def test_removing(key: str, after: str) -> None:
    assert without_member('{ "a": 1, "b": 2, "c": 3 }', (), key) == after


def test_removing_the_only_one() -> None:
    assert without_member('{\n  "a": {"b": 1 }\n}\n', ("a",), "b") == '{\n  "a": {}\n}\n'


@pytest.mark.parametrize("text", ["", "[1]", "{", "{} {}", "5", '{"a": 1,}', '{"a": 1} // c'])
def test_what_is_no_object(text: str) -> None:
    with pytest.raises(ValueError, match=r"line 1 column|no object"):
        with_member(text, (), "k", 1)
    with pytest.raises(ValueError, match=r"line 1 column|no object"):
        without_member(text, (), "a")


def test_members_that_are_or_are_not_there() -> None:
    for path, key in (((), "a"), (("b",), "x")):
        with pytest.raises(ValueError, match="there is"):
            with_member('{"a": 1}', path, key, 1)
    with pytest.raises(ValueError, match="there is no member"):
        without_member('{"a": 1}', (), "b")
    assert keys('{"a": {"c": 1}, "b": 2, "a": {"d": 1}}') == ["a", "b", "a"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(
    st.dictionaries(st.text(), VALUES), st.text(), VALUES, st.sampled_from([None, 0, 1, 2, 4, "\t", " \t"])
)
def test_any_text(values: dict[str, Any], key: str, value: Any, indent: Any) -> None:
    values.pop(key, None)
    text = json.dumps(values, indent=indent)
    added = with_member(text, (), key, value)
    assert json.loads(added) == {**values, key: value}
    assert json.loads(without_member(added, (), key)) == values
    if values:
        assert without_member(added, (), key) == text
