"""Trains and evaluates one job of the tables in `docs/results.md`; prints a line of JSON.

`python -m benchmarks.scores hopper --data hopper-medium-replay.hdf5 --seed 1 [--threads 1]
[--append docs/scores.jsonl]`

`python -m benchmarks.scores_table` makes the tables from the lines that were appended.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from rllib_dt import DT, DTConfig
from tuned_examples import (
    atari_dt,
    cartpole_dt,
    demo,
    halfcheetah_dt,
    hopper_dt,
    minatar_dt,
    minigrid_dt,
    pendulum_dt,
)
from tuned_examples.key_to_door import key_to_door_dt


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings, the number of updates, and the evaluation episodes for each target.

    Attributes:
        config: the settings.
        updates: the number of updates.
        episodes: evaluated for each target.
        temperatures: the same weights are evaluated with each; None is the settings' own.
        rounds: of online episodes, after the updates.
    """

    config: DTConfig
    updates: int
    episodes: int
    temperatures: Sequence[float | None] = (None,)
    rounds: int = 0


def _pendulum_replay(data: list[str]) -> DTConfig:
    config = pendulum_dt.make_config(data, normalized=False)
    return config.evaluation(target_returns=[-1200.0, -600.0, -150.0])


def _pendulum_short(data: list[str], **model: Any) -> Job:
    """Returns five steps of context, where too small initial weights lose the condition."""
    config = pendulum_dt.make_config(data).evaluation(target_returns=[-120.0, -500.0])
    config = _with_model(config, context_length=5, n_layer=2, **model)
    return Job(config=config, updates=2000, episodes=20)


PENDULUM_SHORT: dict[str, Any] = {
    "initializer_range": 0.1,
    "activation_function": "gelu",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
"""Settings with which a short context keeps the condition; see docs/log.md."""


Q_WEIGHT = 40.0
"""The weight of the Q term in every row of the tables."""

EXPERT_RETURNS = {"halfcheetah": 12135.0, "hopper": 3234.3}
"""The returns of D4RL's experts (Fu et al. 2020, arXiv:2004.07219), for `q_best_return`."""


def _with_model(config: DTConfig, **settings: Any) -> DTConfig:
    return config.rl_module(model_config={**config.model_config, **settings})


def _hopper_window(data: list[str]) -> Job:
    config = _with_model(hopper_dt.make_config(data), attention="window")
    return Job(config=config.training(precision="bf16"), updates=5000, episodes=10)


def _asked_for_the_most(config: DTConfig, updates: int, episodes: int) -> Job:
    """Returns the job with "max" beside its own targets."""
    config.training(max_return_expectile=0.99)
    config.evaluation(target_returns=["max", *config.target_returns])
    return Job(config=config, updates=updates, episodes=episodes)


def _averaged(config: DTConfig, **training: Any) -> Job:
    config = config.training(ema_decay=0.999, **training)
    return Job(config=config, updates=5000, episodes=10)


def _improved(config: DTConfig, updates: int, episodes: int, **training: Any) -> Job:
    """Returns the job with the Q term, and with "max" beside its own targets."""
    config = config.training(q_weight=Q_WEIGHT, **training)
    return _asked_for_the_most(config, updates, episodes)


def _averaged_and_improved(config: DTConfig, **training: Any) -> Job:
    """Returns the Q term's job with averaged weights."""
    return _improved(config, 5000, 10, ema_decay=0.999, **training)


def _online(config: DTConfig, updates: int, episodes: int, rounds: int) -> Job:
    """Returns the job with a stochastic policy, which goes on with five episodes a round."""
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = _with_model(config, action_distribution="squashed_gaussian", **dropout)
    config.online(
        rollouts_per_iteration=5 if rounds else None,
        updates_per_iteration=100,
        offline_updates=updates,
    )
    return Job(config=config, updates=updates, episodes=episodes, rounds=rounds)


def _one_step(data: list[str]) -> DTConfig:
    """Returns Hopper with one step of context, whose rate falls over the same updates."""
    config = _with_model(hopper_dt.make_config(data), context_length=1)
    return config.training(lr=[[0, 1e-3], [3000 * 64, 1e-3], [5000 * 64, 1e-5]])


def _short_hopper(data: list[str], change: Callable[[DTConfig], DTConfig]) -> Job:
    """Returns 2,000 updates on Hopper, whose rate falls over the last two fifths as there."""
    config = change(hopper_dt.make_config(data))
    steps = 2000 * 64 * config.dt_model_config.context_length
    config.training(lr=[[0, 1e-3], [int(0.6 * steps), 1e-3], [steps, 1e-5]])
    return Job(config=config, updates=2000, episodes=10)


def _cloning(config: DTConfig) -> DTConfig:
    return _with_model(config, condition_on_return=False)


SHORT_HOPPER: dict[str, Callable[[DTConfig], DTConfig]] = {
    "hopper-short": lambda config: config,
    "hopper-delayed": lambda config: config.training(delayed_reward=True),
    "hopper-bc": _cloning,
    "hopper-bc10": lambda config: _cloning(config).offline_data(top_fraction=0.1),
    "hopper-context1": lambda config: _with_model(config, context_length=1),
    "hopper-predicts": lambda config: config.training(
        state_loss_weight=1.0, return_loss_weight=1.0
    ),
}
"""The paper's other experiments (Chen et al. 2021, §5), each a change of settings."""


def _key_to_door(data: list[str], method: str) -> Job:
    config = key_to_door_dt.make_config(data, method=method)
    updates = 10 * config.dataset_num_iters_per_learner
    return Job(config=config, updates=updates, episodes=100)


def _key_to_door_improved(data: list[str]) -> Job:
    job = _key_to_door(data, "dt")
    return _improved(job.config, job.updates, job.episodes)


JOBS: dict[str, Callable[[list[str]], Job]] = {
    "demo": lambda data: Job(config=demo.make_config(data[0]), updates=demo.UPDATES, episodes=20),
    "cartpole": lambda data: Job(config=cartpole_dt.make_config(data), updates=1000, episodes=20),
    "pendulum": lambda data: Job(config=pendulum_dt.make_config(data), updates=2000, episodes=20),
    "pendulum-short": partial(_pendulum_short, **PENDULUM_SHORT),
    "pendulum-short-default": _pendulum_short,
    "pendulum-replay": lambda data: Job(config=_pendulum_replay(data), updates=2000, episodes=20),
    "hopper": lambda data: Job(config=hopper_dt.make_config(data), updates=5000, episodes=10),
    "hopper-window": _hopper_window,
    "halfcheetah": lambda data: Job(
        config=halfcheetah_dt.make_config(data), updates=5000, episodes=10
    ),
    "demo-max": lambda data: _asked_for_the_most(demo.make_config(data[0]), demo.UPDATES, 20),
    "hopper-averaged": lambda data: _averaged(hopper_dt.make_config(data)),
    "hopper-averaged-constant": lambda data: _averaged(hopper_dt.make_config(data), lr=1e-3),
    "halfcheetah-averaged": lambda data: _averaged(halfcheetah_dt.make_config(data)),
    "halfcheetah-q": lambda data: _averaged_and_improved(halfcheetah_dt.make_config(data)),
    "halfcheetah-q-expert": lambda data: _averaged_and_improved(
        halfcheetah_dt.make_config(data), q_best_return=EXPERT_RETURNS["halfcheetah"]
    ),
    "halfcheetah-max": lambda data: _asked_for_the_most(
        halfcheetah_dt.make_config(data).training(ema_decay=0.999), 5000, 10
    ),
    "hopper-q": lambda data: _averaged_and_improved(hopper_dt.make_config(data)),
    "hopper-q-expert": lambda data: _averaged_and_improved(
        hopper_dt.make_config(data), q_best_return=EXPERT_RETURNS["hopper"]
    ),
    "hopper-context1-averaged": lambda data: _asked_for_the_most(
        _one_step(data).training(ema_decay=0.999), 5000, 10
    ),
    "hopper-context1-q": lambda data: _averaged_and_improved(_one_step(data)),
    "pendulum-q": lambda data: _improved(pendulum_dt.make_config(data), 2000, 20),
    "pendulum-offline": lambda data: _online(pendulum_dt.make_config(data), 2000, 20, 0),
    "pendulum-online": lambda data: _online(pendulum_dt.make_config(data), 2000, 20, 60),
    "key-to-door-q": _key_to_door_improved,
    "minatar-q": lambda data: _improved(
        minatar_dt.make_config(data), 3000, 20, critic_updates=3000
    ),
    "pong": lambda data: Job(
        config=atari_dt.make_config(data), updates=2000, episodes=10, temperatures=(1.0, 0.0)
    ),
    "minatar": lambda data: Job(
        config=minatar_dt.make_config(data), updates=3000, episodes=20, temperatures=(1.0, 0.0)
    ),
    "minigrid": lambda data: Job(
        config=minigrid_dt.make_config(data), updates=2000, episodes=100, temperatures=(1.0, 0.0)
    ),
    **{
        f"key-to-door-{method}": partial(_key_to_door, method=method)
        for method in key_to_door_dt.METHODS
    },
    **{name: partial(_short_hopper, change=change) for name, change in SHORT_HOPPER.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--updates", type=int, help="instead of the job's own number")
    parser.add_argument("--append", type=Path, help="a file to append the line to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ray.init("local", num_cpus=2, include_dashboard=False)
    job = JOBS[args.job](args.data)
    updates = args.updates or job.updates
    config = job.config.debugging(seed=args.seed).evaluation(evaluation_duration=job.episodes)
    algo = config.build_algo()
    summary = algo.offline_data.summary
    started = time.perf_counter()
    offline = config.critic_iterations + updates // config.dataset_num_iters_per_learner
    for _ in range(offline + job.rounds):
        learner = algo.train()["learners"]["default_policy"]
        if "critic_updates_lifetime" in learner and not learner["num_updates_lifetime"]:
            done, loss = learner["critic_updates_lifetime"], learner["critic_q_loss"]
            print(f"critic: {done:.0f} updates, loss {loss:.4g}", file=sys.stderr, flush=True)
            continue
        print(
            f"{int(learner['num_updates_lifetime'])} updates, loss {learner['action_loss']:.4f}, "
            f"{learner['num_updates_per_s']:.2f} updates/s",
            file=sys.stderr,
            flush=True,
        )
    trained = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = algo.save_to_path(folder + "/checkpoint")
        algo.stop()
        for temperature in job.temperatures:
            line = {
                "job": args.job,
                "data": [Path(path).name for path in args.data],
                "data_mean": round(summary.return_mean, 3),
                "seed": args.seed,
                "updates": updates,
                "windows": config.windows_per_learner,
                "episodes": job.episodes,
                "action_loss": float(learner["action_loss"]),
                "train_seconds": round(trained),
                **evaluated(checkpoint, temperature),
            }
            print(json.dumps(line), flush=True)
            if args.append:
                with args.append.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    ray.shutdown()


def evaluated(checkpoint: str, temperature: float | None) -> dict[str, Any]:
    """Evaluates a checkpoint: mean and standard deviation at each target."""
    settings = {} if temperature is None else {"temperature": temperature}
    algo = DT.from_checkpoint(checkpoint, evaluation=settings)
    started = time.perf_counter()
    results = algo.evaluate()["env_runners"]
    algo.stop()
    return {
        "temperature": temperature,
        "evaluation_seconds": round(time.perf_counter() - started),
        "env_steps": results["num_env_steps_sampled"],
        "by_target": {
            target: [round(r["episode_return_mean"], 2), round(r["episode_return_std"], 2)]
            for target, r in results["by_target"].items()
        },
        **({"success": dict(results["success"])} if "success" in results else {}),
    }


if __name__ == "__main__":
    main()
