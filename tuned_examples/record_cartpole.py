"""Records `data/cartpole-mixed`, the demo's data: CartPole-v1 by policies of every quality.

`python tuned_examples/record_cartpole.py [--folder data/cartpole-mixed] [--episodes 300]`

Each episode has its own policy, which aims to last a certain number of steps: good ones keep the
pole up and leave the track late, bad ones let the pole fall. These numbers are spread over 15 to
500, evenly on a log scale. The right action depends on the state and the remaining return, which
are what a Decision Transformer conditions on. Some policies also take random actions now and then.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_dt import write_episodes

SECONDS_PER_STEP = 0.02
TRACK_END, FALLEN_ANGLE = 2.4, 0.2095
# a stabilising state feedback; the gains for the pole are rounded results of LQR
SPEED_GAIN, ANGLE_GAIN, ANGULAR_SPEED_GAIN = 2.0, 30.0, 8.0
SHORTEST, LONGEST = 15, 500
# if the pole fell more slowly than this, the cart would leave the track first
LONGEST_FALL = 100
ERROR_RATES = (0.0, 0.05, 0.1)


def push(observation: np.ndarray, steps_left: int, lifetime: int, side: int) -> int:
    """Returns the action of a policy that fails on `side` (±1) after `lifetime` steps."""
    position, velocity, angle, angular_velocity = observation
    seconds_left = max(steps_left, 1) * SECONDS_PER_STEP
    if lifetime < LONGEST_FALL:
        wanted = side * max(FALLEN_ANGLE - side * angle, 0.0) / seconds_left
        return int(angular_velocity > wanted)
    wanted = side * (TRACK_END - side * position) / seconds_left
    force = (
        SPEED_GAIN * (velocity - wanted)
        + ANGLE_GAIN * angle
        + ANGULAR_SPEED_GAIN * angular_velocity
    )
    return int(force > 0)


def record(env: gym.Env, rng: np.random.Generator, seed: int) -> dict[str, Any]:
    """Records one episode of a policy drawn from `rng`."""
    # short episodes have few steps, so more of them are needed
    lifetime = round(SHORTEST * (LONGEST / SHORTEST) ** rng.random())
    side, error_rate = int(rng.choice([-1, 1])), rng.choice(ERROR_RATES)
    observation, _ = env.reset(seed=seed)
    episode: dict[str, Any] = {"obs": [observation], "actions": [], "rewards": []}
    terminated = truncated = False
    while not (terminated or truncated):
        action = push(observation, lifetime - len(episode["actions"]), lifetime, side)
        if rng.random() < error_rate:
            action = int(rng.integers(2))
        observation, reward, terminated, truncated, _ = env.step(action)
        episode["obs"].append(observation)
        episode["actions"].append(action)
        episode["rewards"].append(float(reward))
    return episode | {"terminated": terminated, "truncated": truncated}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="data/cartpole-mixed")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    env = gym.make("CartPole-v1")
    rng = np.random.default_rng(args.seed)

    def episodes() -> Iterator[dict[str, Any]]:
        for number in range(args.episodes):
            yield record(env, rng, seed=args.seed + number)

    files = write_episodes(episodes(), args.folder, env.observation_space, env.action_space)
    print(f"{args.episodes} episodes in {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
