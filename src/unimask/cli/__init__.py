"""The command line: `unimask predict | train | translate | evaluate | convert | export | bench | ...`.

Every error in the input is one message on standard error and exit code 2.
"""

import atexit
import gc
import inspect
import io
import os
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperArgument, TyperGroup

from unimask import __version__
from unimask.cli import output as show
from unimask.cli.checking import check
from unimask.cli.comparing import compare
from unimask.cli.failures import AGAIN, BAD_INPUT, STOPPED, explain
from unimask.cli.learning import ablate, evaluate, train
from unimask.cli.models import bench, convert, export, presets, push
from unimask.cli.options import groups
from unimask.cli.prediction import predict
from unimask.cli.reproduction import reproduce
from unimask.cli.serving import serve
from unimask.cli.sharding import shards
from unimask.cli.translation import translate
from unimask.cli.usage import UsageError, explain_usage
from unimask.errors import UnimaskError
from unimask.training.result import LostProcessError

HELP_OPTIONS = {"help_option_names": ["--help", "-h"]}

app = typer.Typer(
    name="unimask",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=HELP_OPTIONS,
)


def main() -> NoReturn:
    """Run the command line; the entry point of the `unimask` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may contain any bytes
    # Pillow's warning about large images; the limit here is `data/pillow.py:MOST_PIXELS`
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    atexit.register(gc.freeze)  # no search for garbage at the end: all memory goes then, and it takes .5 s
    try:
        code = _command()(standalone_mode=False) or 0
    except UsageError as error:
        message = explain_usage(error)
        if message:
            show.show_error(message)
        sys.exit(BAD_INPUT)
    except UnimaskError as error:
        show.show_error(error)
        sys.exit(AGAIN if isinstance(error, LostProcessError) else BAD_INPUT)
    except KeyboardInterrupt:
        code = STOPPED
    except Exception as error:
        if os.environ.get("UNIMASK_TRACEBACK"):
            raise
        sys.exit(explain(error))
    if code == STOPPED:
        show.show_error("by the keyboard", "stopped")
    sys.exit(code)


def _command() -> TyperGroup:
    """Return all commands, with Python types removed from their help."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for command in (group, *group.commands.values()):
        option = command.get_help_option(typer.Context(command, **command.context_settings))
        if option is not None:
            option.metavar = ""
        command.params.sort(key=_place)
        for parameter in command.params:
            if isinstance(parameter, TyperArgument):
                parameter.display_type_rich = lambda ctx: ""  # type: ignore[method-assign]
    return group


def _place(parameter: Any) -> int:
    """Return the sort key of a parameter in the help: the number of its group."""
    return groups.ORDER.index(parameter.rich_help_panel)


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"unimask {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Segment images, and train segmentation models: Mask2Former, MaskFormer, EoMT, and DETR for boxes.

    Each command has its own --help.

    Examples:
      unimask predict photo.jpg
      unimask train --data my_data
      unimask serve
    """


def _flowing(text: str) -> str:
    """Return help with the lines of each paragraph joined, except where a paragraph has indented lines."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        paragraph if "\n  " in paragraph else paragraph.replace("\n", " ") for paragraph in paragraphs
    )


COMMANDS = {
    "Use a model": (predict, serve, translate, export),
    "Train a model": (check, shards, train, evaluate, compare, presets),
    "Exchange weights": (convert, push),
    "Study models": (bench, ablate, reproduce),
}
for _group, _members in COMMANDS.items():
    for _each in _members:
        app.command(
            context_settings=HELP_OPTIONS,
            help=_flowing(inspect.getdoc(_each) or ""),
            rich_help_panel=_group,
        )(_each)
