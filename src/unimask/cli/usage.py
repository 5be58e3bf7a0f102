"""Messages for command lines that cannot be parsed, with what to type instead."""

import re
from importlib import import_module
from typing import Any

import typer

from unimask.errors import choices, nearest

_click: Any = import_module(typer.BadParameter.__module__)  # click's errors; newer typer includes click
UsageError: type[Exception] = _click.UsageError
"""The error that typer raises for a command line that it cannot parse; it has no public name there."""

_NO_COMMAND = re.compile(r"No such command '(?P<wrong>.*?)'\.", re.DOTALL)
_NO_RANGE = re.compile(r".* is not in the range .*|.*\b(greater|less) than\b.*", re.DOTALL)
_NO_CHOICE = re.compile(r"(Value error, )?'(?P<wrong>.*)' is not one of (?P<known>.*?)\.?", re.DOTALL)


def explain_usage(error: Any) -> str:
    """Return what is wrong and what to type instead, or "" if the help has been shown."""
    if type(error).__name__ == "NoArgsIsHelpError":  # missing in older versions
        return ""
    context, message = error.ctx, error.message or ""  # a missing option has no message
    path, command = (context.command_path, context.command) if context else ("unimask", None)
    listed, example = f"`{path} --help` lists them", _example(command)
    if isinstance(error, _click.NoSuchOption):
        known = [option for one in command.params for option in _options(one)] if command else []
        wrong = error.option_name
        return f"{wrong}: no such option of `{path}`; {nearest(wrong, known) or example}{listed}"
    if unknown := _NO_COMMAND.match(message):
        near = nearest(unknown["wrong"], command.commands if command else ())
        return f"{unknown['wrong']}: no such command; {near}{listed}"
    name = path
    if isinstance(error, _click.BadParameter) and error.param is not None:
        name = [*_options(error.param), error.param.metavar or ""][0]
    if choice := _NO_CHOICE.fullmatch(message):
        names = [one.strip(" '") for one in choice["known"].split(",")]
        return f"{name}: {choice['wrong']!r} does not exist; {choices(choice['wrong'], names)}"
    if _NO_RANGE.fullmatch(message) and error.param is not None:
        return f"{name}: {_range(error.param)}; `{path} --help` says more"
    missing = isinstance(error, _click.MissingParameter)
    reason = "is missing" if missing else f"{message[:1].lower()}{message[1:]}"
    return f"{name}: {reason.rstrip('.')}; {example}`{path} --help` says more"


def _options(parameter: Any) -> list[str]:
    """Return the names of an option (`--output`, `-o`); none for an argument."""
    return [option for option in parameter.opts if option.startswith("-")]


def _range(parameter: Any) -> str:
    """Return which numbers an option takes; newer versions of typer keep the bounds in the option itself."""
    places = (parameter, getattr(parameter, "type", None))
    low, high = (
        next((bound for place in places if (bound := getattr(place, name, None)) is not None), None)
        for name in ("min", "max")
    )
    return f"must be at least {low:g}" if high is None else f"must be from {low:g} to {high:g}"


def _example(command: Any) -> str:
    """Return a clause with the first example of a command's help, or "" if there is none."""
    text: str = command.help or "" if command else ""
    example = text.partition("Examples:\n")[2].partition("\n")[0].strip()
    return f"it is called as in `{example}`; " if example else ""
