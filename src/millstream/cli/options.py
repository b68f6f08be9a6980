"""What options and commands of the command line share: the values they take, the sections of their help, their errors.

Nothing here imports torch: ``--help`` and a mistake are answered at once.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import click

from millstream.errors import MillstreamError, SettingError

__all__ = ["Command", "Commands", "choice", "fraction", "in_one_line", "number", "options", "section", "whole"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
Callback: TypeAlias = Callable[[click.Context, click.Parameter, Any], Any]
"""What click asks about the value of an option: it gives the value to be used, or refuses it."""

_OTHERS = "Other options"
_PYTHON_NAMES = ("on_error", "nonfinite", "max_skips", "clip_norm", "clip_value")  # of settings that are options here


def whole(least: int = 1, *, or_auto: bool = False) -> Callback:
    """A whole number, ``least`` or more; with ``or_auto`` also that word."""

    def check(_: click.Context, param: click.Parameter, value: Any) -> int | str | None:
        if value is None or (or_auto and value == "auto"):
            return None if value is None else "auto"
        try:
            number = int(value)
        except ValueError:
            number = least - 1
        if not least <= number < 1 << 63:
            raise _refused(param, value, f"a whole number, {least} or more" + (", or auto" if or_auto else ""))
        return number

    return check


def number(*, above: float = -math.inf, least: float = -math.inf, or_auto: bool = False) -> Callback:
    """A finite number: above ``above``, or ``least`` or more; with ``or_auto`` also ``auto``."""

    def check(_: click.Context, param: click.Parameter, value: Any) -> float | str | None:
        if value is None or (or_auto and value == "auto"):
            return None if value is None else "auto"
        found = _float(value)
        if not (math.isfinite(found) and found > above and found >= least):
            bound = f" above {above:g}" if above > -math.inf else f", {least:g} or more" if least > -math.inf else ""
            raise _refused(param, value, f"a number{bound}" + (", or auto" if or_auto else ""))
        return found

    return check


def fraction(*, or_file: bool = False) -> Callback:
    """A share of the records between 0 and 1; with ``or_file`` also a file, and 0 for none."""

    def check(_: click.Context, param: click.Parameter, value: Any) -> float | str | None:
        if value is None:
            return None
        found = _float(value)
        if or_file and value and math.isnan(found) and value.lower() != "nan":
            return str(value)
        if not (0 < found < 1 or (or_file and found == 0)):
            raise _refused(param, value, "a share between 0 and 1" + (", 0 for none, or a file" if or_file else ""))
        return found

    return check


def choice(*words: str) -> Callback:
    """One of a few words."""

    def check(_: click.Context, param: click.Parameter, value: Any) -> str | None:
        if value is None:
            return None
        if value not in words:
            near = difflib.get_close_matches(str(value), words, 1)
            raise _refused(param, value, f"one of {', '.join(words)}", f"try {near[0]}" if near else "use one of these")
        return str(value)

    return check


class Option(click.Option):
    """An option that knows the section of the help that it belongs to."""

    def __init__(self, *arguments: Any, section: str = "Options", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section


class Command(click.Command):
    """A command whose help has its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", _OTHERS), []).append(record)
        sections[_OTHERS] = sections.pop(_OTHERS)  # --help comes last
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=30)


class Commands(click.Group):
    """A group that lists its commands in the order of work, and ends quietly when nobody reads its output any more."""

    command_class = Command
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # What is still buffered must not be written at the exit of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(141) from None  # as the shell says of a process that SIGPIPE has ended


def options(*several: Callable[[Any], Any]) -> Callable[[_Function], _Function]:
    """Several options as one decorator, in the order in which they are listed."""

    def apply(function: _Function) -> _Function:
        for option in reversed(several):
            function = option(function)
        return function

    return apply


def section(title: str) -> Callable[..., Callable[[_Function], _Function]]:
    """``click.option``, for a section of the help."""

    def option(*names: str, **settings: Any) -> Callable[[_Function], _Function]:
        if "callback" in settings:
            settings["type"] = str  # click would guess another one from the default, and answer in its own words
        return click.option(*names, cls=Option, section=title, **settings)

    return option


def in_one_line(error: MillstreamError | click.ClickException) -> str:
    """What a person did wrong: what was got, what was wanted, what to do; in the words of the command line."""
    if isinstance(error, MillstreamError):
        return f"millstream: {_with_options(' '.join(str(error).split()))}"
    command = (error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "") or "millstream"
    got, do = error.format_message().rstrip("."), f"see `{command} --help`"
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        known = [name for parameter in error.ctx.command.params for name in parameter.opts]
        got, do = f"option {error.option_name}", _try(error.option_name, known, do)
    elif isinstance(error, click.exceptions.NoSuchCommand) and error.ctx is not None:
        assert isinstance(error.ctx.command, click.Group)
        got, do = f"command {error.command_name!r}", _try(error.command_name, list(error.ctx.command.commands), do)
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        got = f"no {error.param.make_metavar(error.ctx) if error.ctx else error.param.name}"
    else:
        got = re.sub(r"^(Option '\S+') ", r"\1, which ", got).removeprefix("Got ")
        got = got[:1].lower() + got[1:]
    return f"millstream: got {got}; wanted a command line like `{_pattern(error)}`; {do}"


def _pattern(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return "millstream COMMAND" if context is None else " ".join([context.command_path, *_pieces(context)])


def _pieces(context: click.Context) -> list[str]:
    return [piece for piece in context.command.collect_usage_pieces(context) if piece]


def _try(name: str, known: Sequence[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.7)
    return f"try {near[0]}" if near else otherwise


def _float(value: Any) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def _refused(param: click.Parameter, value: Any, wanted: str, do: str = "") -> SettingError:
    return SettingError(
        got=f"{max(param.opts, key=len)} {value}".rstrip(), wanted=wanted, do=do or "leave it out for the default"
    )


def _with_options(text: str) -> str:
    """Settings as Python writes them, as options."""
    for name in _PYTHON_NAMES:
        text = re.sub(rf"\b{name}='?([\w.|-]+)'?", rf"--{name.replace('_', '-')} \1", text)
    text = re.sub(r"\((\S+=class:\S+)\)", r"(--column \1)", text)
    return text.replace("declare another type in schema=", "declare the column otherwise (--column NAME=KIND)")
