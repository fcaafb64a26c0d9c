"""Dataclasses to JSON values and back, by their type annotations."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any


def to_json(value: Any) -> Any:
    """Return `value` in terms of dict, list, str, int, float, bool and None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[Any], value: Mapping[str, Any]) -> Any:
    """Build a dataclass from what `to_json` made of one.

    Unknown keys are passed over, so that an older daemon reads a newer one's
    records; absent ones get the field's default.

    Raises:
        ValueError: a field without a default is absent, or a value does not fit.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{cls.__name__} expects an object, not {type(value).__name__}")
    hints = _hints(cls)  # type: ignore[arg-type]  # mypy: a class may have an unhashable metaclass
    arguments = {}
    for item in dataclasses.fields(cls):
        if item.name in value:
            arguments[item.name] = _convert(hints[item.name], value[item.name], f"{cls.__name__}.{item.name}")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(str(error)) from error


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.NewType):
        return _convert(hint.__supertype__, value, where)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(part for part in arguments if part is not types.NoneType), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expects a list, not {type(value).__name__}")
        return tuple(_convert(arguments[0], item, where) for item in value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_json(hint, value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if isinstance(value, bool) and hint in (int, float):
        raise ValueError(f"{where}: expects a number, not {value}")
    if hint is float and isinstance(value, int):
        return float(value)
    expected = Mapping if origin is not None else hint
    if not isinstance(value, expected):
        raise ValueError(
            f"{where}: expects {getattr(expected, '__name__', expected)}, not {type(value).__name__}"
        )
    return value
