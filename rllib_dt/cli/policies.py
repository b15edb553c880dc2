"""The commands about policies: `train`, `evaluate`, `export` and `serve`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rllib_dt.cli.running import DEBUG, run
from rllib_dt.episodes.targets import MAX
from rllib_dt.policy.fetched import is_remote

_TRAIN = """Trains on recordings, and writes checkpoints: a run of Ray Tune.

    rllib-dt train tuned_examples/cartpole.yaml --out runs/cartpole

    rllib-dt train --data D4RL/pointmaze/umaze-v2 --env PointMaze_UMaze-v3 --out runs/maze
"""
_EVALUATE = """Asks a trained policy for returns, and prints what it achieves.

    rllib-dt evaluate runs/cartpole --targets 50,200,350 --plot targets.png --json targets.json
"""
_EXPORT = """Writes a policy as ONNX (OUT ends in .onnx), or as a Hugging Face folder.

    rllib-dt export runs/cartpole policy.onnx
"""
_SERVE = """Serves a policy over HTTP until it is interrupted.

    rllib-dt serve runs/cartpole --port 8000 --sessions
"""


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    debug = Annotated[bool, DEBUG]
    checkpoint = Annotated[
        str, typer.Argument(help="A checkpoint, a run's folder, or a Hugging Face folder.")
    ]

    @app.command(help=_TRAIN)
    def train(
        config: Annotated[
            Path | None, typer.Argument(help="A YAML file; its sections are DTConfig's methods.")
        ] = None,
        data: Annotated[
            list[str] | None, typer.Option(help="Recordings, instead of the file's; repeatable.")
        ] = None,
        env: Annotated[str | None, typer.Option(help="An environment of gymnasium.")] = None,
        out: Annotated[Path | None, typer.Option(help="The run's folder.")] = None,
        iterations: Annotated[int | None, typer.Option(min=1, help="Stop after as many.")] = None,
        num_cpus: Annotated[
            int | None, typer.Option(min=1, help="Logical CPUs of the local cluster.")
        ] = None,
        debug: debug = False,
    ) -> None:
        run(lambda: _train(config, data, env, out, iterations, num_cpus), debug)

    @app.command(help=_EVALUATE)
    def evaluate(
        checkpoint: checkpoint,
        targets: Annotated[
            str | None, typer.Option(help="Returns to ask for: 50,200, or 0:400:20 for 20 of them.")
        ] = None,
        episodes: Annotated[int | None, typer.Option(min=1, help="Episodes for each.")] = None,
        env: Annotated[str | None, typer.Option(help="An environment of gymnasium.")] = None,
        seed: Annotated[int | None, typer.Option(min=0, help="Decides the episodes.")] = None,
        runners: Annotated[int, typer.Option(min=0, help="Processes that play them.")] = 0,
        plot: Annotated[Path | None, typer.Option(help="Where to draw them.")] = None,
        json_file: Annotated[
            Path | None, typer.Option("--json", help="Where to write the numbers.")
        ] = None,
        debug: debug = False,
    ) -> None:
        run(
            lambda: _evaluate(checkpoint, targets, episodes, env, seed, runners, plot, json_file),
            debug,
        )

    @app.command(help=_EXPORT)
    def export(
        checkpoint: checkpoint,
        out: Annotated[Path, typer.Argument(help="A file that ends in .onnx, or a folder.")],
        encoders: Annotated[
            list[str] | None, typer.Option(help="A checkpoint's own encoders that you trust.")
        ] = None,
        debug: debug = False,
    ) -> None:
        run(lambda: _export(checkpoint, out, encoders or []), debug)

    @app.command(help=_SERVE)
    def serve(
        checkpoint: checkpoint,
        host: Annotated[str, typer.Option(help="0.0.0.0 for all interfaces.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
        sessions: Annotated[bool, typer.Option(help="Remember episodes on the server.")] = False,
        replicas: Annotated[int, typer.Option(min=1, help="Processes with the policy.")] = 1,
        encoders: Annotated[
            list[str] | None, typer.Option(help="A checkpoint's own encoders that you trust.")
        ] = None,
        debug: debug = False,
    ) -> None:
        run(lambda: _serve(checkpoint, host, port, sessions, replicas, encoders or []), debug)


def _train(
    config: Path | None,
    data: list[str] | None,
    env: str | None,
    out: Path | None,
    iterations: int | None,
    num_cpus: int | None,
) -> None:
    if config is None and not data:
        raise ValueError("give a YAML file, or recordings with --data")
    from rllib_dt import runs
    from rllib_dt.cli.progress import TrainingProgress

    if config is None:
        planned = runs.default_run(data or [], env, iterations or 10)
    else:
        planned = runs.read_run(config)
        if data:
            planned.config.offline_data(input_=[_located(place) for place in data])
        if env is not None:
            planned.config.environment(env=env)
    runs.check_places(planned.config)
    asked = dict(planned.tune)
    if iterations is not None:
        asked["stop"] = {**asked.get("stop", {}), "training_iteration": iterations}
    planned = runs.Run(config=planned.config, tune=asked)
    if out is None and "name" not in asked and "storage_path" not in asked:
        out = Path("runs") / (config.stem if config is not None else "default")
    last = asked.get("stop", {}).get("training_iteration")
    with _cluster(num_cpus):
        results = planned.fit(out, callbacks=[TrainingProgress(last)])
    for result in results:
        found = (result.metrics or {}).get("evaluation", {}).get("env_runners", {})
        if found.get("by_target"):
            _print_table(found["by_target"])
        place = result.checkpoint.path if result.checkpoint is not None else result.path
        print(f"checkpoint: {place}")


def _evaluate(
    checkpoint: str,
    targets: str | None,
    episodes: int | None,
    env: str | None,
    seed: int | None,
    runners: int,
    plot: Path | None,
    json_file: Path | None,
) -> None:
    from rllib_dt import runs

    asked = None if targets is None else _numbers(targets)
    runs.check_evaluation(checkpoint, env)
    with _cluster(None):
        result, returns = runs.evaluate(
            checkpoint,
            asked,
            episodes=episodes,
            env=env,
            seed=seed,
            num_env_runners=runners,
            with_data=plot is not None,
        )
    by_target = result["by_target"]
    _print_table(by_target)
    if plot is not None:
        from rllib_dt.plots import plot_targets

        plot_targets(by_target, returns, plot)
        print(f"plot: {plot}")
    if json_file is not None:
        text = json.dumps(by_target, indent=2, default=lambda number: number.item())  # numpy's
        json_file.write_text(text + "\n", encoding="utf-8")
        print(f"numbers: {json_file}")


def _export(checkpoint: str, out: Path, encoders: list[str]) -> None:
    from rllib_dt.policy.folders import save_pretrained
    from rllib_dt.policy.loading import load_policy

    policy = load_policy(checkpoint, encoders=encoders)
    if out.suffix == ".onnx":
        policy.export_onnx(out)
    elif out.suffix:
        raise ValueError(f"{out} must end in .onnx, or be a folder, without a suffix")
    else:
        save_pretrained(policy.network, out)
    print(f"wrote {out}")


def _serve(
    checkpoint: str, host: str, port: int, sessions: bool, replicas: int, encoders: list[str]
) -> None:
    from rllib_dt.serve import ServeSettings, app

    settings = ServeSettings(
        checkpoint=checkpoint
        if is_remote(checkpoint)
        else str(Path(checkpoint).expanduser().resolve()),
        sessions=sessions,
        num_replicas=replicas,
        encoders=",".join(encoders),
    )
    application = app(settings)
    with _cluster(replicas + 2):
        from ray import serve

        serve.start(http_options={"host": host, "port": port})
        print(f"serving {checkpoint} at http://{host}:{port}", file=sys.stderr)
        try:
            serve.run(application, blocking=True)
        finally:
            serve.shutdown()


class _cluster:  # noqa: N801  a context manager, named like a function
    """Connects to the cluster of RAY_ADDRESS, or starts a local one, quietly; ends what it began.

    Args:
        num_cpus: of a local cluster; by default as many as there are, at least 4, since Tune asks
            for one for each process, busy or not.
    """

    def __init__(self, num_cpus: int | None):
        self._num_cpus = num_cpus

    def __enter__(self) -> None:
        import logging
        import os

        import ray

        self._began = not ray.is_initialized()
        if not self._began:
            return
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not os.environ.get("RAY_ADDRESS"):
            options |= {"address": "local", "include_dashboard": False}
            options["num_cpus"] = self._num_cpus or max(4, os.cpu_count() or 1)
        ray.init(**options)

    def __exit__(self, *_: object) -> None:
        import ray

        if self._began:
            ray.shutdown()


def _located(place: str) -> str:
    from rllib_dt.formats.minari import located

    return located(place)


def _numbers(text: str) -> list[float | str]:
    """Reads "50,200,max" or "0:400:20", which is 20 numbers from 0 to 400."""
    try:
        if ":" in text:
            first, last, count = text.split(":")
            import numpy as np

            if not 1 <= int(count) <= 1000:
                raise ValueError("from 1 to 1000 targets")
            return [float(value) for value in np.linspace(float(first), float(last), int(count))]
        return [MAX if part.strip() == MAX else float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--targets {text!r}: give numbers, such as 50,200, or a range, such as 0:400:20"
        ) from None


def _print_table(by_target: Mapping[str, Mapping[str, Any]]) -> None:
    from rllib_dt.plots import calibration, target_table

    print(target_table(by_target))
    try:
        print(calibration(by_target))
    except ValueError as error:
        print(error)
