"""Shared by all contenders: the setting, and the protocol by which they run tasks.

Each contender is a process, since their dependencies do not fit one environment. It reads lines of
JSON, `{"task": name, "n": count}`, runs the task with that count, and answers `{"seconds": …}`, so
the benchmark can alternate between contenders. This module imports neither `rllib_dt` nor Ray.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping

# the paper's setting for gym (kzl/decision-transformer @ e2d82e6)
OBSERVATIONS, ACTIONS = 11, 3
CONTEXT, WINDOWS, WIDTH, LAYERS, HEADS, DROPOUT = 20, 64, 128, 3, 1, 0.1
LEARNING_RATE, WEIGHT_DECAY, CLIP, RETURN_SCALE = 1e-4, 1e-4, 0.25, 1000.0
MAX_STEPS = 1000
TARGET = 3000.0

# the paper's setting for Atari, with the gym setting's width (kzl/decision-transformer @ e2d82e6)
IMAGE, IMAGE_ACTIONS, IMAGE_CONTEXT, IMAGE_WINDOWS = (4, 84, 84), 6, 30, 128
IMAGE_LAYERS, IMAGE_HEADS = 6, 8

EPISODE_STEPS = 200
"""Steps in an evaluation episode; nine in ten are taken with a full context."""

Task = Callable[[int], object]

# from here on, output printed by libraries goes to standard error
_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def make_hopper():
    """Makes a Hopper-v5 that continues after a fall, so that untrained policies' episodes last."""
    import gymnasium as gym

    return gym.make("Hopper-v5", terminate_when_unhealthy=False, max_episode_steps=EPISODE_STEPS)


def timed(task: Task, n: int) -> float:
    """Returns the seconds that the task takes."""
    started = time.perf_counter()
    task(n)
    return time.perf_counter() - started


def serve(tasks: Mapping[str, Task], versions: Mapping[str, str]) -> None:
    """Runs the tasks that are requested on standard input, until it ends."""

    def answer(**values: object) -> None:
        print(json.dumps(values), file=_answers, flush=True)

    answer(tasks=list(tasks), versions=dict(versions))
    for line in sys.stdin:
        order = json.loads(line)
        answer(seconds=timed(tasks[order["task"]], order["n"]))
