"""The application that commands are put on: what it is told, and what it prints when a command fails."""

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import rich
import typer
from typer.core import TyperGroup

from openmm_cgflow.errors import CGFlowError, InvalidInputError

__all__ = ["app", "fail", "load_torch", "main"]


class _Commands(TyperGroup):
    """Prints errors that users can fix in one line; remembers the command line for reports."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: Any = None,  # noqa: ANN401  (newer typer has its own copy of click: its Context has no public name)
        **extra: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        extra.setdefault("obj", shlex.join(["openmm-cgflow", *args]))
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> object:  # noqa: ANN401
        try:
            with _told():
                return super().invoke(ctx)
        except CGFlowError as error:
            fail(str(error), 2)
        except OSError as error:
            fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1)


@contextmanager
def _told() -> Iterator[None]:
    """Show what the package has to say while it works; the logging of the process is as before after it."""
    logger, handler, console = logging.getLogger("openmm_cgflow"), logging.StreamHandler(), rich.get_console()
    level, quiet, handlers = logger.level, console.quiet, list(logger.handlers)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for added in set(logger.handlers) - set(handlers):
            logger.removeHandler(added)
            added.close()
        logger.setLevel(level)
        console.quiet = quiet


def fail(message: str, code: int) -> NoReturn:
    """End the command with this message, in one line, and this exit code."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Equilibrium samples and free energies of a molecule from its OpenMM force field, without a simulation.",
)


def _show_version(asked: bool) -> None:
    if asked:
        from openmm_cgflow.version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; warnings and the result alone.")] = False,
    log_file: Annotated[
        Path | None, typer.Option(help="Append what is told, with the time, to this file.", show_default=False)
    ] = None,
) -> None:
    logger = logging.getLogger("openmm_cgflow")
    if quiet:  # the bars of progress are drawn on this console
        rich.get_console().quiet = True
        for shown in logger.handlers:
            shown.setLevel(logging.WARNING)
    if log_file is not None:
        words = [Path(file).resolve() for word in shlex.split(ctx.obj) for file in _files(word)]
        if words.count(log_file.resolve()) > 1:
            raise InvalidInputError(f"--log-file {log_file} is a file of the command itself: choose another one")
        kept = logging.FileHandler(log_file, encoding="utf-8")
        kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.setLevel(logging.DEBUG)
        for shown in logger.handlers:
            shown.setLevel(max(shown.level, logging.INFO))
        logger.addHandler(kept)


def _files(word: str) -> set[str]:
    """What may be the name of a file in a word of the command line: FILE, --option=FILE or -oFILE."""
    option = word.partition("=")[2] if word.startswith("--") else word[2:] if word.startswith("-") else word
    return {option} if option else set()


def load_torch() -> None:
    """Load torch before anything loads openmm."""
    import torch  # noqa: F401  (openmm-torch's plugin needs torch's libraries in the process first)


def main() -> None:
    """Entry point of the command `openmm-cgflow`."""
    hook = sys.excepthook  # which typer replaces by its own
    try:
        app(prog_name="openmm-cgflow")
    finally:
        sys.excepthook = hook
