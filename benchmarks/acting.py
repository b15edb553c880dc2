"""Measures acting: a torch actor against onnxruntime, and Ray Serve with and without batches.

`python -m benchmarks.acting onnx [--rounds N]` prints microseconds a step and their ratio, for both
attentions, 1 and 16 environments, one thread each; the two sides take turns.

`python -m benchmarks.acting serve [--rounds N] [--clients N]` prints requests a second of windows,
batched (`max_batch_size=64`) and unbatched (1), in turns.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

from rllib_dt import DecisionTransformer, DTModelConfig, TrainedPolicy
from rllib_dt.huggingface import save_pretrained

STEPS = 200
SIZE, ACTIONS = 11, 3  # Hopper's


def policy(attention: str) -> TrainedPolicy:
    """Returns a policy of the paper's size for Hopper."""
    torch.manual_seed(0)
    config = DTModelConfig(attention=attention, max_ep_len=1000)
    spaces = Box(-np.inf, np.inf, (SIZE,)), Box(-1.0, 1.0, (ACTIONS,))
    return TrainedPolicy(network=DecisionTransformer(config, *spaces).eval())


def with_torch(trained: TrainedPolicy, num_envs: int, observed: np.ndarray) -> Callable[[], None]:
    """Returns what plays some steps with an actor."""
    actor = trained.actor(3600.0, num_envs)

    def play() -> None:
        actor.reset()
        for observation in observed:
            actor.predict(observation, 1.0)

    return play


def with_onnx(trained: TrainedPolicy, num_envs: int, observed: np.ndarray) -> Callable[[], None]:
    """Returns what plays the same steps with onnxruntime and numpy."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = trained.export_onnx(Path(folder) / "policy.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options)
    if trained.network.config.attention == "window":
        return _with_ring(session, num_envs, observed)
    K = trained.network.config.context_length
    shapes = {"observations": SIZE, "actions": ACTIONS, "returns_to_go": 1}

    def play() -> None:
        window = {name: np.zeros((num_envs, K, n), np.float32) for name, n in shapes.items()}
        window["timesteps"] = np.zeros((num_envs, K), np.int64)
        window["mask"] = np.zeros((num_envs, K), bool)
        for t, observation in enumerate(observed):
            for column in window.values():
                column[:, :-1] = column[:, 1:]
            window["observations"][:, -1] = observation
            window["actions"][:, -1] = 0
            window["returns_to_go"][:, -1] = 3600.0 - t
            window["timesteps"][:, -1], window["mask"][:, -1] = t, True
            window["actions"][:, -1] = session.run(None, window)[0]

    return play


def _with_ring(session: Any, num_envs: int, observed: np.ndarray) -> Callable[[], None]:
    layers, _, *rest = next(i.shape for i in session.get_inputs() if i.name == "cache")

    def play() -> None:
        cache = np.zeros((layers, num_envs, *rest), np.float32)
        action = np.zeros((num_envs, ACTIONS), np.float32)
        for t, observation in enumerate(observed):
            action, cache = session.run(
                None,
                {
                    "observation": observation,
                    "previous_action": action,
                    "return_to_go": np.full((num_envs, 1), 3600.0 - t, np.float32),
                    "timestep": np.full(num_envs, t),
                    "cache": cache,
                },
            )

    return play


def compare_onnx(rounds: int) -> None:
    """Prints microseconds a step of both sides."""
    torch.set_num_threads(1)
    for attention in ("context", "window"):
        trained = policy(attention)
        for num_envs in (1, 16):
            shape = (STEPS, num_envs, SIZE)
            observed = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            sides = {
                "torch": with_torch(trained, num_envs, observed),
                "onnx": with_onnx(trained, num_envs, observed),
            }
            taken: dict[str, list[float]] = {name: [] for name in sides}
            for turn in range(rounds + 1):
                for name, play in sides.items():
                    started = time.perf_counter()
                    play()
                    if turn:  # the first warms up
                        taken[name].append((time.perf_counter() - started) / STEPS * 1e6)
            ratios = [a / b for a, b in zip(taken["torch"], taken["onnx"], strict=True)]
            print(
                f"{attention:8} {num_envs:3} envs: torch {statistics.median(taken['torch']):6.0f} "
                f"us, onnx {statistics.median(taken['onnx']):6.0f} us a step, ratio "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def requests_per_second(url: str, clients: int, seconds: float) -> float:
    """Asks for actions from several threads at once."""
    K = 20
    body = json.dumps(
        {
            "observations": np.random.default_rng(0).normal(size=(K, SIZE)).round(4).tolist(),
            "actions": np.zeros((K - 1, ACTIONS)).tolist(),
            "returns_to_go": [3600.0] * K,
            "timestep": 500,
        }
    ).encode()
    stop = threading.Event()

    def ask() -> int:
        answered = 0
        while not stop.is_set():
            urllib.request.urlopen(urllib.request.Request(url, body), timeout=60).read()
            answered += 1
        return answered

    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        asking = [pool.submit(ask) for _ in range(clients)]
        time.sleep(seconds)
        stop.set()
        answered = sum(each.result() for each in asking)
        return answered / (time.perf_counter() - started)


def compare_serving(rounds: int, clients: int) -> None:
    """Prints requests a second with and without batches."""
    import ray
    from ray import serve

    from rllib_dt.serve import ServeSettings, app

    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": 8137})
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(policy("context").network, folder)
        for name, size in (("batched", 64), ("unbatched", 1)):
            settings = ServeSettings(checkpoint=folder, max_batch_size=size)
            serve.run(app(settings), name=name, route_prefix=f"/{name}")
        found: dict[str, list[float]] = {"batched": [], "unbatched": []}
        for turn in range(rounds + 1):
            for name, rates in found.items():
                rate = requests_per_second(f"http://127.0.0.1:8137/{name}", clients, 4.0)
                if turn:
                    rates.append(rate)
    ratios = [a / b for a, b in zip(found["batched"], found["unbatched"], strict=True)]
    print(
        f"{clients} clients: batched {statistics.median(found['batched']):.0f}, unbatched "
        f"{statistics.median(found['unbatched']):.0f} requests a second, ratio "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    serve.shutdown()
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("onnx", "serve"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", type=int, default=32)
    args = parser.parse_args()
    if args.what == "onnx":
        compare_onnx(args.rounds)
    else:
        compare_serving(args.rounds, args.clients)


if __name__ == "__main__":
    main()
