"""The command line that `tuned_examples` share: RLlib's flags and the data's path."""

from collections.abc import Callable, Mapping, Sequence

from ray.rllib.examples.utils import (
    add_rllib_example_script_args,
    run_rllib_example_script_experiment,
)
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN, EVALUATION_RESULTS
from ray.tune.result import TRAINING_ITERATION

from rllib_dt.algorithm.config import DTConfig

RETURN_AT_FIRST_TARGET = f"{EVALUATION_RESULTS}/{ENV_RUNNER_RESULTS}/{EPISODE_RETURN_MEAN}"


def run_example(
    make_config: Callable[..., DTConfig],
    *,
    reward: float,
    iters: int,
    options: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Runs an example script with the flags of RLlib's examples.

    Args:
        make_config: builds the example's settings from the paths given as `--data`, and from its
            own options.
        reward: the mean return at the first target that ends the run; `--as-test` requires it.
        iters: the most iterations.
        options: the example's own flags and the values of each, passed to `make_config` by name if
            they are given.
    """
    parser = add_rllib_example_script_args(default_reward=reward, default_iters=iters)
    parser.add_argument(
        "--data", action="append", required=True, help="a recording: a file or a folder"
    )
    for name, values in (options or {}).items():
        parser.add_argument(f"--{name}", choices=values)
    parser.set_defaults(algo="DT", evaluation_interval=5, evaluation_duration=10)
    args = parser.parse_args()
    chosen = {name: getattr(args, name) for name in options or {} if getattr(args, name)}
    config = make_config(args.data, **chosen)
    last = args.stop_iters + config.critic_iterations
    run_rllib_example_script_experiment(
        config,
        args,
        stop={RETURN_AT_FIRST_TARGET: args.stop_reward, TRAINING_ITERATION: last},
        success_metric={RETURN_AT_FIRST_TARGET: args.stop_reward},
    )
