"""What was typed wrongly, as one message with the way out."""

import re
from typing import cast

import typer

from unimask.errors import choices, nearest

UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])
"""What typer raises for a command line that it cannot parse; it has no public name there."""

_NO_COMMAND = re.compile(r"No such command '(?P<wrong>.*?)'\.", re.DOTALL)
_NO_CHOICE = re.compile(r"(Value error, )?'(?P<wrong>.*)' is not one of (?P<known>.*?)\.?", re.DOTALL)


def explain_usage(error: Exception) -> str:
    """Return what is wrong and what to type instead; "" where the help has been shown already."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    context: typer.Context | None = getattr(error, "ctx", None)
    path = context.command_path if context else "unimask"
    command = context.command if context else None
    listed, message = f"`{path} --help` lists them", str(getattr(error, "message", ""))
    if hasattr(error, "possibilities"):
        wrong = str(getattr(error, "option_name", ""))
        known = [option for one in getattr(command, "params", ()) for option in _options(one)]
        return f"{wrong}: no such option of `{path}`; {nearest(wrong, known) or _example(command)}{listed}"
    if unknown := _NO_COMMAND.match(message):
        near = nearest(unknown["wrong"], getattr(command, "commands", ()))
        return f"{unknown['wrong']}: no such command; {near}{listed}"
    parameter = getattr(error, "param", None)
    name = [*_options(parameter), str(getattr(parameter, "metavar", ""))][0] if parameter else path
    if choice := _NO_CHOICE.fullmatch(message):
        names = [one.strip(" '") for one in choice["known"].split(",")]
        return f"{name}: {choice['wrong']!r} does not exist; {choices(choice['wrong'], names)}"
    reason = "is missing" if hasattr(error, "param_type") else f"{message[:1].lower()}{message[1:]}"
    return f"{name}: {reason.rstrip('.')}; {_example(command)}`{path} --help` says more"


def _options(parameter: object) -> list[str]:
    """Return how an option is written; nothing for an argument."""
    return [option for option in getattr(parameter, "opts", ()) if option.startswith("-")]


def _example(command: object) -> str:
    """Return the first example of a command's help, with a blank behind."""
    example = str(getattr(command, "help", "")).partition("Examples:\n")[2].partition("\n")[0].strip()
    return f"it is called as in `{example}`; " if example else ""
