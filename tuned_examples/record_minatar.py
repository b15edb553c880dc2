"""Records MinAtar's Breakout played by a script of every quality.

`python -m tuned_examples.record_minatar --folder FOLDER [--steps 50000]`

The player moves below the place where the ball will come down. In each episode it errs, by a random
action, with another probability. Needs the `minatar` extra.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rllib_dt import write_episodes
from tuned_examples.minatar_dt import MAX_STEPS, make_env

SIDE = 10
PADDLE, BALL, TRAIL, BRICKS = range(4)
STAY, LEFT, RIGHT = range(3)
ERROR_RATES = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


def aim(observation: np.ndarray) -> int:
    """Returns the action that brings the paddle below the ball's next landing.

    Args:
        observation: (10, 10, 4) bool, as MinAtar makes it.
    """
    row, column = np.argwhere(observation[..., BALL])[0]
    last_row, last_column = np.argwhere(observation[..., TRAIL])[0]
    (paddle,) = np.flatnonzero(observation[-1, :, PADDLE])
    # in the step in which it bounces off anything, a ball keeps its row or its column
    is_falling = row > last_row or (row == last_row and row < SIDE - 2)
    goes_right = column > last_column or (column == last_column and column == 0)
    (rows,) = np.nonzero(observation[..., BRICKS].any(axis=1))
    turn = min(row, rows[-1] + 1) if len(rows) else 0  # where a rising ball will probably turn
    steps = SIDE - 1 - row if is_falling else row - turn + SIDE - 1 - turn
    # a hit one column earlier sends it the other way, which breaks cycles that hit no brick
    steps -= int(observation[..., BRICKS].sum()) % 2
    direction = 1 if goes_right else -1
    place = (column + direction * steps) % (2 * SIDE)  # walls reflect
    landing = place if place < SIDE else 2 * SIDE - 1 - place
    return STAY if landing == paddle else LEFT if landing < paddle else RIGHT


def play(env: Any, rng: np.random.Generator, error_rate: float) -> dict[str, Any]:
    """Plays one episode."""
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    episode: dict[str, Any] = {"obs": [observation], "actions": [], "rewards": []}
    terminated = truncated = False
    while not (terminated or truncated):
        errs = rng.random() < error_rate
        action = int(rng.integers(3)) if errs else aim(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        episode["obs"].append(observation)
        episode["actions"].append(action)
        episode["rewards"].append(float(reward))
    return episode | {"terminated": terminated, "truncated": truncated}


def record(folder: str | Path, *, steps: int, seed: int = 0) -> dict[float, list[float]]:
    """Records episodes to a folder, as many steps of each error rate; returns their returns.

    Args:
        folder: for Parquet files.
        steps: at least this many in all.
        seed: of everything that is drawn.
    """
    env, rng = make_env({}), np.random.default_rng(seed)
    returns: dict[float, list[float]] = {rate: [] for rate in ERROR_RATES}

    def episodes() -> Iterator[dict[str, Any]]:
        for rate in ERROR_RATES:
            left = steps / len(ERROR_RATES)
            while left > 0:
                episode = play(env, rng, rate)
                left -= len(episode["actions"])
                returns[rate].append(sum(episode["rewards"]))
                yield episode

    write_episodes(episodes(), folder, env.observation_space, env.action_space)
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for rate, returns in record(args.folder, steps=args.steps, seed=args.seed).items():
        print(f"error rate {rate}: {len(returns)} episodes, mean return {np.mean(returns):.1f}")
    print(f"episodes of at most {MAX_STEPS} steps in {args.folder}")


if __name__ == "__main__":
    main()
