"""The commands about recordings: `inspect` and `convert`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rllib_dt.cli.running import DEBUG, run

_INSPECT = """Says what recordings hold, and what is odd about them.

    rllib-dt inspect data/cartpole-mixed --plot card.png
"""
_CONVERT = """Converts recordings of any format to Parquet with one row per episode.

    rllib-dt convert expert_cartpole.npz my-data --env CartPole-v1
"""


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    debug = Annotated[bool, DEBUG]
    data = Annotated[list[str], typer.Argument(help="Files, folders, or the id of a Minari set.")]
    env = Annotated[
        str | None, typer.Option(help="An environment of gymnasium, for its spaces and time limit.")
    ]
    rewards = Annotated[
        str | None, typer.Option(help="Rewards of data without: success, or a number a step.")
    ]
    ends = Annotated[
        str | None, typer.Option(help="How episodes end that do not say it: terminated, truncated.")
    ]
    last_row = Annotated[
        str | None,
        typer.Option(help="RLDS's row of the last observation: drop, or keep as a step."),
    ]

    @app.command(help=_INSPECT)
    def inspect(
        data: data,
        env: env = None,
        missing_rewards: rewards = None,
        missing_ends: ends = None,
        last_row: last_row = None,
        plot: Annotated[Path | None, typer.Option(help="Where to draw distributions.")] = None,
        debug: debug = False,
    ) -> None:
        options = _options(env, missing_rewards, missing_ends, last_row)
        run(lambda: _inspect(data, plot, **options), debug)

    @app.command(help=_CONVERT)
    def convert(
        data: data,
        out: Annotated[Path, typer.Argument(help="A folder, created if needed.")],
        env: env = None,
        missing_rewards: rewards = None,
        missing_ends: ends = None,
        last_row: last_row = None,
        debug: debug = False,
    ) -> None:
        options = _options(env, missing_rewards, missing_ends, last_row)
        run(lambda: _convert(data, out, **options), debug)


def _options(
    env: str | None, rewards: str | None, ends: str | None, last_row: str | None
) -> dict[str, Any]:
    return {"env": env, "missing_rewards": rewards, "missing_ends": ends, "last_row": last_row}


def _settings(env: str | None, **options: str | None) -> tuple[Any, dict[str, Any]]:
    """Returns the spaces of an environment, or None, and the options of readers."""
    found: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    rewards = found.get("missing_rewards")
    if rewards is not None and rewards != "success":
        found["missing_rewards"] = float(rewards)
    if env is None:
        return None, found
    import gymnasium as gym

    try:
        made = gym.make(env)
    except gym.error.Error as error:
        raise ValueError(f"the environment {env!r} cannot be created: {error}") from error
    spec = made.spec
    if spec is not None and spec.max_episode_steps is not None:
        found["time_limit"] = spec.max_episode_steps
    spaces = made.observation_space, made.action_space
    made.close()
    return spaces, found


def _inspect(data: list[str], plot: Path | None, env: str | None, **options: str | None) -> None:
    from rllib_dt.cards import report

    spaces, found = _settings(env, **options)
    card = report(_places(data), spaces=spaces, **found)
    print(card)
    if plot is not None:
        card.plot(plot)


def _convert(data: list[str], out: Path, env: str | None, **options: str | None) -> None:
    from rllib_dt.conversion import convert

    spaces, found = _settings(env, **options)
    with _Progress() as progress:
        files = convert(_places(data), out, spaces=spaces, on_episode=progress.add, **found)
    print(f"{progress.episodes} episodes, {progress.steps} steps -> {len(files)} files in {out}")


def _places(data: list[str]) -> list[str]:
    from rllib_dt.formats.minari import located

    return [located(place) for place in data]


class _Progress:
    """Shows how much was converted, where the error stream is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.episodes = self.steps = 0
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        console = Console(stderr=True)
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("", total=1.0)

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def add(self, steps: int, share: float) -> None:
        """Adds an episode; `share` of the files' bytes belong to files that are done."""
        self.episodes += 1
        self.steps += steps
        text = f"{self.episodes} episodes, {self.steps} steps"
        self._bar.update(self._task, completed=share, description=text)
