"""Values as a recipe's YAML gives them, turned into what an argument dataclass declares.

YAML reads `1e-4` as a string, `no` as false, and `[1, 2]` as integers where the field is of floats; a single value may stand
for a list of one.
"""

import types
from dataclasses import fields
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


# As on the command line.
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def apply_declared_types(arguments: Any) -> None:
    """
    Converts the values of a dataclass instance, in place, to the types of its fields.

    Raises:
        `ValueError`: a value that its field cannot have; the message names the field.
    """
    declared = get_type_hints(type(arguments))
    for one in fields(arguments):
        if one.init:
            value = getattr(arguments, one.name)
            try:
                converted = _converted(value, declared[one.name])
            except (TypeError, ValueError, KeyError):
                kind = declared[one.name]
                expected = kind if get_args(kind) else kind.__name__
                raise ValueError(f"`{one.name}` must be of type {expected}; got {value!r}") from None
            setattr(arguments, one.name, converted)


def _converted(value: Any, declared: Any) -> Any:
    options = get_args(declared) if get_origin(declared) in (Union, types.UnionType) else (declared,)
    if value is None and types.NoneType in options:
        return None
    options = tuple(one for one in options if one is not types.NoneType)
    if value is False and any(isinstance(one, type) and issubclass(one, Enum) for one in options):
        return "no"  # of a strategy: YAML 1.1 reads the word as false
    if isinstance(value, dict) and any(one is dict or get_origin(one) is dict for one in options):
        return {key: _number_in(one) for key, one in value.items()}
    if len(options) > 1 or options[0] is Any or get_origin(options[0]) is Literal:
        return value  # one of several types: transformers' own arguments see to that
    if get_origin(options[0]) is list:
        (element,) = get_args(options[0])
        return [_scalar(one, element) for one in (value if isinstance(value, list | tuple) else [value])]
    return _scalar(value, options[0])


def _scalar(value: Any, declared: type) -> Any:
    if declared is bool:
        return BOOLEANS[value.lower()] if isinstance(value, str) else _checked(value, bool)
    if declared in (int, float):
        if isinstance(value, bool) or (declared is int and isinstance(value, float) and not value.is_integer()):
            raise TypeError
        return declared(value)
    if declared is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # such as a branch whose name is a number
    return _checked(value, declared)


def _checked(value: Any, declared: type) -> Any:
    if isinstance(declared, type) and not isinstance(value, declared):
        raise TypeError
    return value


def _number_in(value: Any) -> Any:
    """Of a string such as "1e-4" the number that it spells."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value
