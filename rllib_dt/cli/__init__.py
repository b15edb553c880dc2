"""The command line, `rllib-dt`: what it does, functions of the package do.

`recordings` has the commands about data, `policies` those about training and what comes of it.

Exit codes: 0 done, 1 the data, a setting or a checkpoint was refused, 2 the command was not
understood.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Runs the command line."""
    try:
        import typer  # noqa: F401
    except ImportError:
        print("rllib-dt needs typer: pip install 'rllib_dt[cli]'", file=sys.stderr)
        sys.exit(1)
    try:
        sys.exit(make_app()(standalone_mode=False) or 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if type(error).__name__ == "Abort":  # click's name for Ctrl-C
            sys.exit(130)
        show = getattr(error, "show", None)  # what the command line itself refuses
        if show is not None:
            show()
            sys.exit(2)
        raise


def make_app() -> "typer.Typer":
    """Returns the commands."""
    import typer

    from rllib_dt.cli import policies, recordings

    app = typer.Typer(
        help="The Decision Transformer for RLlib.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    recordings.add_to(app)
    policies.add_to(app)
    return app
