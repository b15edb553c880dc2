"""Records random walks through Key-to-Door.

`python -m tuned_examples.key_to_door.record --folder FOLDER [--episodes 1000]`

About 28 of 1,000 walks take the key and open the door.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rllib_dt import write_episodes
from tuned_examples.key_to_door.environment import KeyToDoor


def walk(env: KeyToDoor, rng: np.random.Generator) -> dict[str, Any]:
    """Records one random walk."""
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    actions = rng.integers(env.action_space.n, size=env.num_steps)
    observations, rewards = [observation], []
    for action in actions:
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return {
        "obs": observations,
        "actions": actions,
        "rewards": rewards,
        "terminated": True,
        "truncated": False,
    }


def record(folder: str | Path, *, episodes: int, seed: int = 0, **settings: Any) -> float:
    """Records random walks to a folder, and returns their success rate.

    Args:
        folder: for Parquet files.
        episodes: the number of walks.
        seed: of all walks.
        settings: those of `KeyToDoor`.
    """
    env, rng, successes = KeyToDoor(**settings), np.random.default_rng(seed), 0.0

    def walks() -> Iterator[dict[str, Any]]:
        nonlocal successes
        for _ in range(episodes):
            episode = walk(env, rng)
            successes += sum(episode["rewards"])
            yield episode

    write_episodes(walks(), folder, env.observation_space, env.action_space)
    return successes / episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--middle-steps", type=int, default=60)
    args = parser.parse_args()
    rate = record(
        args.folder,
        episodes=args.episodes,
        seed=args.seed,
        middle_steps=args.middle_steps,
        as_vector=True,
    )
    print(f"{args.episodes} walks, {100 * rate:.1f} % succeed")


if __name__ == "__main__":
    main()
