"""Model values as JSON and back."""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from turnkeep import codec, config, model

MODELS: list[type[Any]] = [
    cls
    for module in (model, config)
    for cls in vars(module).values()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__
]

EXAMPLES = 25
"""Of each class; the same few kinds of fields are in dozens of them."""

_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def fitting(hint: Any) -> st.SearchStrategy[Any]:
    """Return values that fit a field's annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.NewType):
        return fitting(hint.__supertype__)
    if hint is Any:
        return _JSON
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*(st.none() if part is types.NoneType else fitting(part) for part in arguments))
    if origin is tuple:
        return st.lists(fitting(arguments[0]), max_size=3).map(tuple)
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(st.text(), fitting(arguments[1]), max_size=3)
    if dataclasses.is_dataclass(hint):
        return values(typing.cast("type[Any]", hint))
    if issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    return {
        str: st.text(),
        int: st.integers(),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
    }[hint]


def values(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Return any value of a dataclass."""
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{item.name: fitting(hints[item.name]) for item in dataclasses.fields(cls)})


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_every_value_survives(cls: type[Any], data: st.DataObject) -> None:
    value = data.draw(values(cls))
    text = json.dumps(codec.to_json(value))
    assert codec.from_json(cls, json.loads(text)) == value


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_unknown_keys_are_passed_over(cls: type[Any], data: st.DataObject) -> None:
    """A newer daemon wrote them."""
    value = data.draw(values(cls))
    assert codec.from_json(cls, {**codec.to_json(value), "from_the_future": {"x": 1}}) == value


def wrong_for(hint: Any) -> list[Any]:
    """Return values that do not fit an annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.NewType):
        return wrong_for(hint.__supertype__)
    if origin in (types.UnionType, typing.Union):
        inner = next(part for part in arguments if part is not types.NoneType)
        return [value for value in wrong_for(inner) if value is not None]
    if origin is tuple:
        return [None, "text", 5, {}, [[]]]
    if origin is not None:
        return [None, "text", 5, []]
    if dataclasses.is_dataclass(hint):
        return [None, "text", 5, []]
    if issubclass(hint, enum.Enum):
        return [None, "no such", 5, [], {}]
    scalars: dict[Any, list[Any]] = {
        str: [None, 5, [], {}, True],
        int: [None, "5", 5.5, []],
        float: [None, "5", []],
        bool: [None, 1, "true"],
    }
    return scalars[hint]


CASES = [
    pytest.param(cls, item.name, value, id=f"{cls.__name__}.{item.name}={value!r}")
    for cls in MODELS
    for item in dataclasses.fields(cls)
    for value in wrong_for(typing.get_type_hints(cls)[item.name])
]
_SMALLEST: dict[type[Any], dict[str, Any]] = {}


def smallest(cls: type[Any]) -> dict[str, Any]:
    """Return the JSON of some value of a class."""
    if cls not in _SMALLEST:
        required: dict[str, Any] = {}
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                required[item.name] = _plain(hints[item.name])
        _SMALLEST[cls] = required
    return _SMALLEST[cls]


def _plain(hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if isinstance(hint, typing.NewType):
        return _plain(hint.__supertype__)
    if origin in (types.UnionType, typing.Union):
        return None
    if origin is tuple:
        return []
    if origin is not None:
        return {}
    if dataclasses.is_dataclass(hint):
        return smallest(typing.cast("type[Any]", hint))
    if issubclass(hint, enum.Enum):
        return next(iter(hint)).value
    return hint()


@pytest.mark.parametrize(("cls", "name", "value"), CASES)
def test_a_wrong_type_is_a_value_error(cls: type[Any], name: str, value: Any) -> None:
    codec.from_json(cls, smallest(cls))
    with pytest.raises(ValueError):  # noqa: PT011  # each field says it in its own words
        codec.from_json(cls, {**smallest(cls), name: value})


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_absent_fields_get_their_defaults_or_are_missed(cls: type[Any]) -> None:
    required = smallest(cls)
    assert codec.from_json(cls, required) == codec.from_json(
        cls, codec.to_json(codec.from_json(cls, required))
    )
    for name in required:
        with pytest.raises(ValueError, match=name):
            codec.from_json(cls, {key: value for key, value in required.items() if key != name})


@pytest.mark.parametrize("value", [None, [], "text", 5])
def test_what_is_no_object_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match="expects an object"):
        model.Mount.from_json(value)


@pytest.mark.parametrize("cls", [model.TurnTimings, config.Limits])
def test_truth_is_no_number(cls: type[Any]) -> None:
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(ValueError, match=name):
        codec.from_json(cls, {name: True})
