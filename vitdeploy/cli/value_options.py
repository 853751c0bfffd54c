"""Command-line options from the fields of option values; the command receives the values."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli import command
from vitdeploy.cli.output import PATH
from vitdeploy.errors import UsageError
from vitdeploy.system.option_fields import default_text, options_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vitdeploy.system.option_fields import Option


def values_from_options(**kinds: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of each class; the command receives a value of it by that name, or None if none was given.

    UsageErrors that name a field get the option's name instead.
    """
    options = [option for kind in kinds.values() for option in _options(kind)]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_values(**arguments: Any) -> Any:
            typed = {name: arguments.pop(name) for name, _ in options}
            typed = {name: value for name, value in typed.items() if value not in (None, ())}
            values = {name: _value(kind, typed) for name, kind in kinds.items()}
            try:
                return function(**values, **arguments)
            except UsageError as exc:
                flags = {name: flag for kind in kinds.values() for name, flag in _flags(kind)}
                for name, kind in kinds.items():
                    flags[name] = next((_flag(flag) for flag, _ in _options(kind) if flag in typed), name)
                raise as_typed(exc, flags) from exc

        decorated: Callable[..., Any] = with_values
        for _, add in reversed(options):
            decorated = add(decorated)
        return decorated

    return decorate


def as_typed(exc: UsageError, flags: Mapping[str, str]) -> UsageError:
    """The error with field names replaced by option names, except in paths or quotes."""
    text = str(exc)
    for name, flag in flags.items():
        if name == exc.what or "_" in name:
            text = re.sub(rf"(?<![\w/'-]){name}(?![\w/'-])", flag, text, count=0 if "_" in name else 1)
    return exc.with_message(text)


def _value(kind: type, typed: Mapping[str, Any]) -> Any:
    """A value of the class from the given options; None if none was given."""
    given: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for field, option in options_in(kind):
        name = option.typed or field.name
        if option.nested is not None:
            values = _value(option.nested, typed)
        elif option.variants:
            values = [typed[variant] for variant in option.variants if variant in typed]
            if len(values) > 1:
                flags = " and ".join(map(_flag, option.variants))
                raise UsageError(f"only one of {flags} can be given", what=field.name, found=values)
            values = values[0] if values else None
        else:
            values = False if typed.get(str(option.off)) else typed.get(name)
        if values is not None:
            (shared if option.shared else given)[field.name] = values
    if not given:
        return None
    for field, _ in options_in(kind):
        if field.default is dataclasses.MISSING and field.name not in given:
            names = dict(_flags(kind))
            needs, needed = names[next(iter(given))], names[field.name]
            raise UsageError(f"{needs} needs {needed}", what=field.name, hint=f"add {needed}, or leave {needs} out")
    try:
        return kind(**given, **shared)
    except UsageError as exc:
        raise as_typed(exc, dict(_flags(kind))) from exc


def _flags(kind: Any) -> Iterator[tuple[str, str]]:
    """The name of each field, and of its option."""
    for field, option in options_in(kind):
        if option.nested is not None:
            yield field.name, next(_flags(option.nested))[1]
            yield from ((name, flag) for name, flag in _flags(option.nested) if "_" in name)
        yield from ((name, _flag(name)) for name in option.variants)
        if option.nested is None and not option.variants:
            yield field.name, _flag(option.typed or field.name)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _options(kind: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The name of each parameter of a command, and its decorator."""
    for field, option in options_in(kind):
        name, add = option.typed or field.name, functools.partial(command.option, group=option.group or _heading(kind))
        if option.nested is not None:
            yield from _options(option.nested)
        elif option.variants:
            for typed, variant in option.variants.items():
                text = str(variant.__doc__).partition("\n")[0]
                yield typed, add(_flag(typed), typed, metavar="SHARE", callback=_reader(variant), help=text)
        elif not option.shared:
            yield name, add(_flag(name), name, help=_help(field, option), **_settings(field, option))
        if option.off is not None:
            text = f"Disable {_flag(name)}."
            yield option.off, add(_flag(option.off), option.off, is_flag=True, default=None, help=text)


def _heading(kind: type) -> str:
    """The heading of a class's options in the help."""
    name = kind.__name__.removesuffix("Options")
    return {"Source": "Model", "Processor": "Image processor", "Engine": "Engines", "WeightsFile": "Model"}.get(
        name, name
    )


def _help(field: dataclasses.Field[Any], option: Option) -> str:
    default = None if field.default is False else default_text(field, option)
    variable = "" if option.envvar is None else f"  [env: {option.envvar}]"
    return option.help + variable + ("" if default is None else f"  [default: {default}]")


def _settings(field: dataclasses.Field[Any], option: Option) -> dict[str, Any]:
    if isinstance(field.default, bool):
        return {"is_flag": True, "default": None}
    settings: dict[str, Any] = {"metavar": option.metavar, "multiple": option.repeated, "envvar": option.envvar}
    if option.choices or option.typed_choices:
        settings["type"] = command.Choice(option.choices or option.typed_choices, hints=option.hints)
    elif option.limits:
        settings["type"] = click.IntRange(*option.limits)
    elif option.path:
        settings["type"] = PATH
    if option.read is not None:
        settings["callback"] = _reader(option.read)
    elif option.names and not option.repeated:
        settings["callback"] = _reader(lambda text: tuple(name.strip() for name in text.split(",")))
    elif option.repeated:
        settings["callback"] = _reader(str)
    return settings


def _reader(read: Callable[[str], Any]) -> Callable[..., Any]:
    """Callback that parses a text, or each of several once."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:  # noqa: ARG001
        try:
            if isinstance(value, tuple):
                return tuple(map(read, dict.fromkeys(value)))
            return None if value is None else read(value)
        except UsageError as exc:
            raise click.BadParameter(str(as_typed(exc, {str(exc.what): param.opts[0]}))) from exc

    return callback
