"""Options of plug-ins: strings (`-o key=value`) as arguments of a constructor."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refbench.errors import AdapterError, DatasetError, RefbenchError


def bind_options(name: str, factory: Any, options: Mapping[str, str], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Convert strings (`-o key=value`) to the types in the annotations of `factory`, or to the types of its default
    values.

    Arguments in `offered` are added only if `factory` has a parameter for them.

    Raises:
        AdapterError: `factory` has no such option, or the value has the wrong type.
    """
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{name} is not a callable class: {error}") from error
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (TypeError, NameError, AttributeError):
        # Some annotations exist for type checkers only; the defaults then give the types.
        hints = {}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    arguments: dict[str, Any] = {k: v for k, v in offered.items() if k in parameters}
    for key, text in options.items():
        if key not in parameters and not takes_any:
            known = ", ".join(parameters) or "none"
            raise AdapterError(f"{name} has no option {key!r}; its options are: {known}")
        default = parameters[key].default if key in parameters else None
        known_type = str if default is None or default is inspect.Parameter.empty else type(default)
        arguments[key] = _parse_option(name, key, text, hints.get(key, known_type))
    return arguments


def options_of(factory: Any) -> list[dict[str, Any]]:
    """The options of a plug-in, in order: `name`, `default` (None: required) and `choices`."""
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (TypeError, NameError, AttributeError):
        hints = {}
    found = []
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        kind = hints.get(name)
        choices = [c for c in typing.get_args(kind) if c] if typing.get_origin(kind) is typing.Literal else []
        needed = parameter.default is parameter.empty
        default = None if needed else _shown(parameter.default)
        found.append({"name": name, "default": default, "choices": choices})
    return found


def builder_options(name: str, builder: Any, options: Mapping[str, str]) -> dict[str, Any]:
    """The keyword-only parameters of a builder from `-o key=value`; other parameters get their defaults.

    Raises:
        DatasetError: the builder has no such option, or the string cannot be converted to its type.
    """
    own = {
        k: p.default
        for k, p in inspect.signature(builder).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    unknown = sorted(set(options) - set(own))
    if unknown:
        raise DatasetError(f"{name} has no option {unknown[0]!r}; its options are: {', '.join(own) or 'none'}")
    try:
        return {**own, **bind_options(name, builder, options, {})}
    except AdapterError as error:
        raise DatasetError(str(error)) from None


def _shown(default: Any) -> str:
    if default is None:
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _parse_option(adapter: str, key: str, text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        if text not in typing.get_args(kind):
            known = ", ".join(k for k in typing.get_args(kind) if k)
            raise AdapterError(f"{adapter}: the value of -o {key}={text!r} must be one of {known}")
        return text
    if typing.get_origin(kind) is Sequence:
        return [one.strip() for one in text.split(",") if one.strip()]
    choices = [k for k in typing.get_args(kind) if k is not type(None)] or [kind]
    try:
        if bool in choices:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        for number in (int, float):
            if number in choices:
                return number(text)
    except (KeyError, ValueError):
        raise AdapterError(
            f"{adapter}: the value of -o {key}={text!r} must be of type {getattr(kind, '__name__', kind)}"
        ) from None
    return Path(text) if Path in choices else text


def construct(name: str, factory: Any, options: Mapping[str, Any]) -> Any:
    """`factory(**options)`.

    Raises:
        DatasetError: an option does not exist, or the call fails.
    """
    known = list(inspect.signature(factory).parameters)
    for key in options:
        if key not in known:
            raise DatasetError(f"{name} has no option {key!r}; its options are: {', '.join(known) or 'none'}")
    try:
        return factory(**options)
    except RefbenchError:
        raise
    except Exception as error:  # somebody else's class: whatever it raises is reported as its failure
        raise DatasetError(f"{name} cannot be created: {type(error).__name__}: {error}") from error
