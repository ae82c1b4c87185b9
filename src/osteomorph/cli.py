"""The command line. Heavy libraries are imported inside the commands, so that --help answers at once."""

from typing import Annotated

import typer

from osteomorph import __version__
from osteomorph.commands.apply import apply
from osteomorph.commands.bones import bones
from osteomorph.commands.demo import demo
from osteomorph.commands.doctor import doctor
from osteomorph.commands.evaluate import evaluate
from osteomorph.commands.guard import GuardedGroup
from osteomorph.commands.info import info
from osteomorph.commands.prepare import prepare
from osteomorph.commands.register import register
from osteomorph.commands.report import report
from osteomorph.commands.simulate import simulate
from osteomorph.commands.study import study
from osteomorph.commands.train import train
from osteomorph.commands.train_bones import train_bones
from osteomorph.commands.view import view
from osteomorph.process import settle
from osteomorph.stopping import watch

app = typer.Typer(
    cls=GuardedGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for command in (
    register,
    apply,
    bones,
    prepare,
    info,
    simulate,
    train,
    train_bones,
    evaluate,
    study,
    report,
    view,
    demo,
    doctor,
):
    app.command()(command)


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"osteomorph {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, and the warnings of libraries.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Register two 3-D images of one patient: bones rigid, soft tissue smooth."""


def main() -> None:
    """Entry point. A termination ends like Ctrl-C: unfinished output is removed."""
    settle()
    watch()
    app(prog_name="osteomorph")
