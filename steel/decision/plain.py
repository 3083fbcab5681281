"""Conversion of dataclasses and named tuples to and from the types that JSON and YAML have.

Named tuples with a method `from_dict` become dictionaries like dataclasses; all others become lists. NaN and infinity
become None.
"""

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from steel.intervals import Interval

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Convert a value to JSON types, recursively."""
    if is_dataclass(value):
        value = vars(value)
    elif isinstance(value, tuple) and hasattr(value, "from_dict"):
        value = value._asdict()  # type: ignore[attr-defined]
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
    hints = get_type_hints(kind)
    return kind(**{key: _convert(hints[key], value, key) for key, value in plain.items() if key in hints})


def _convert(kind: Any, plain: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin is types.UnionType:  # X | None
        return None if plain is None else _convert(args[0], plain, name)
    if origin is tuple:
        kinds = args[:1] * len(plain) if args[-1] is Ellipsis else args
        return tuple(_convert(item_kind, item, name) for item_kind, item in zip(kinds, plain, strict=True))
    if kind is Interval:
        low, high = plain
        return Interval(-np.inf if low is None else low, np.inf if high is None else high)
    if hasattr(kind, "from_dict"):
        return kind.from_dict(plain)
    if isinstance(kind, type) and is_dataclass(kind):
        return from_plain(kind, plain)
    if kind is float and plain is None:
        return np.nan
    if isinstance(kind, type) and not isinstance(plain, (int, float) if kind is float else kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {plain!r}")
    return float(plain) if kind is float else plain
