"""What commands share: an error becomes one line."""

import sys
import traceback
from collections.abc import Callable

import typer

DEBUG = typer.Option("--debug", help="Show the whole trace of an error.")


def run(command: Callable[[], None], debug: bool) -> None:
    """Runs a command; an error becomes one line, and the exit code 1."""
    try:
        command()
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from error
