"""Conversion of dataclasses to and from the types that JSON and YAML have.

Dataclasses become dictionaries, and named tuples lists. NaN and infinity become None.
"""

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import numpy as np

from steel.intervals import Interval

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Convert a value to JSON types, recursively."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def from_plain(kind: type[T], plain: Mapping[str, Any]) -> T:
    """Rebuild an object from what `to_plain` returned, by the type annotations of its class.

    Unknown keys are ignored. For a float, None means NaN; for an end of an interval, no bound. A class of an attribute
    can check its values in a method `from_dict`.

    Raises:
        TypeError: A key is missing, or a value has the wrong type.
        ValueError: A value is out of range, or a tuple has the wrong length.
    """
    _require(Mapping, plain, kind.__name__)
    hints = get_type_hints(kind)
    return kind(**{key: _convert(hints[key], value, key) for key, value in plain.items() if key in hints})


def _convert(kind: Any, plain: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return plain
    if origin is types.UnionType:  # X | None
        return None if plain is None else _convert(args[0], plain, name)
    if origin is Literal:
        if plain not in args:
            raise ValueError(f"{name} must be one of {', '.join(args)}, got {_shorten(plain)}")
        return plain
    if origin is Mapping:
        return {key: _convert(args[1], item, f"{name}.{key}") for key, item in _require(dict, plain, name).items()}
    if origin is tuple:
        _require((tuple, list), plain, name)
        kinds = args[:1] * len(plain) if args[-1] is Ellipsis else args
        return tuple(_convert(item_kind, item, name) for item_kind, item in zip(kinds, plain, strict=True))
    if kind is Interval:
        low, high = (_convert(float, end, name) for end in _require((tuple, list), plain, name))
        return Interval(-np.inf if np.isnan(low) else low, np.inf if np.isnan(high) else high)
    if hasattr(kind, "from_dict"):
        return kind.from_dict(_require(dict, plain, name))
    if is_dataclass(kind):
        return from_plain(cast("type[Any]", kind), _require(dict, plain, name))
    if kind is float:
        return np.nan if plain is None else float(_require((int, float), plain, name))
    return _require(kind, plain, name)


def _require(kind: Any, plain: Any, name: str) -> Any:
    """Return a value after checking its type. A bool is not a number. The error names the last of several types."""
    if not isinstance(plain, kind) or (isinstance(plain, bool) and kind is not bool):
        expected = kind[-1] if isinstance(kind, tuple) else kind
        raise TypeError(f"{name} must be {expected.__name__}, got {_shorten(plain)}")
    return plain


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
