"""How costs grow, each checked at several sizes beside a formula: the page "How it grows".

`python -m benchmarks.growth [--only updates memory pool stream evaluation] [--threads 2]
[--rounds 7] [--into docs/performance.md]`

Around the paper's setting for gym (11 observations, 3 actions, K 20, 64 windows, width 128, 3
layers, 1 head), one size at a time is changed. Costs are given as multiples of that setting's: all
sizes run once in every round, and a multiple is the median of the rounds' quotients.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from gymnasium.spaces import Box
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.parts.documents import insert
from benchmarks.parts.steps import Step, action_loss, full_windows, in_training, make_update
from rllib_dt import DecisionTransformer, DTConfig, DTModelConfig, write_episodes
from rllib_dt.episodes.windows import Window
from rllib_dt.reading.offline_data import DTOfflineData

BEGIN, END = "<!-- growth: begin -->", "<!-- growth: end -->"
ACTIONS, LAYERS = 3, 3


@dataclass(frozen=True, kw_only=True)
class Size:
    """The sizes that are changed; the defaults are the paper's.

    Attributes:
        K: steps of context.
        D: width.
        S: numbers of an observation.
        B: windows of an update.
    """

    K: int = 20
    D: int = 128
    S: int = 11
    B: int = 64

    @property
    def name(self) -> str:
        """What differs from the paper's setting."""
        changed = {k: v for k, v in vars(self).items() if v != getattr(Size(), k)}
        return ", ".join(f"{k} {v}" for k, v in changed.items()) or "the paper's"

    @property
    def tokens(self) -> int:
        """Tokens of a window: the last step's action is left out."""
        return 3 * self.K - 1

    @property
    def products(self) -> float:
        """Multiplications of an update: three times those of the forward pass.

        Of the embeddings twice, since their inputs need no gradient.
        """
        L, K, D = self.tokens, self.K, self.D
        block = L * (12 * D * D + 2 * L * D)
        last = L * 2 * D * D + K * (10 * D * D + 2 * L * D)  # queries of states only
        embedding = K * (self.S + ACTIONS + 1) * D
        return self.B * (3.0 * ((LAYERS - 1) * block + last) + 2.0 * embedding)

    @property
    def kept(self) -> float:
        """Bytes that the forward pass keeps for the backward pass."""
        L, K, D = self.tokens, self.K, self.D
        # x, ln_1, q k v, y, dropout, x, ln_2, 4 of the MLP, dropout; three of the attention
        block = L * (14 * D + 3 * L)
        last = L * 4 * D + K * (10 * D + 3 * L)
        embedding = 3 * K * 2 * D + K * (self.S + ACTIONS + 1)
        return 4.0 * self.B * ((LAYERS - 1) * block + last + embedding)

    def network(self) -> DecisionTransformer:
        """Returns a network of this size, in training."""
        return in_training(DecisionTransformer(self.model(), *self.spaces()))

    def model(self, **settings: Any) -> DTModelConfig:
        """Returns the settings of a network of this size."""
        return DTModelConfig(
            context_length=self.K, hidden_size=self.D, n_layer=LAYERS, max_ep_len=1000, **settings
        )

    def spaces(self) -> tuple[Box, Box]:
        """Returns the spaces of observations and actions."""
        return Box(-np.inf, np.inf, (self.S,)), Box(-1.0, 1.0, (ACTIONS,))

    def window(self) -> Window:
        """Returns random full windows."""
        return full_windows(self.B, self.K, self.S, ACTIONS)


PAPER = Size()
SIZES = [
    PAPER,
    *(replace(PAPER, K=K) for K in (10, 40)),
    *(replace(PAPER, D=D) for D in (64, 256)),
    *(replace(PAPER, S=S) for S in (110, 1100)),
    *(replace(PAPER, B=B) for B in (16, 256)),
]


def update_of(size: Size) -> Step:
    """Returns an update without RLlib."""
    network, window = size.network(), size.window()
    return make_update(network, lambda: action_loss(network, window))


def bytes_kept(size: Size) -> int:
    """Returns the bytes that the forward pass keeps for the backward pass, without weights."""
    network = size.network()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor  # stays alive, so that no other one gets its address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = action_loss(network, size.window())
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def rounds_of(
    tasks: Sequence[Callable[[], object]], rounds: int, repeat: int = 1
) -> list[list[float]]:
    """Returns the seconds of each task, round by round; the first round does not count.

    A task runs once before it is timed, so that the memory of the task before does not matter.
    """
    seconds: list[list[float]] = [[] for _ in tasks]
    for turn in range(rounds + 1):
        for task, found in zip(tasks, seconds, strict=True):
            task()
            started = time.perf_counter()
            for _ in range(repeat):
                task()
            if turn:
                found.append(time.perf_counter() - started)
    return seconds


def multiple(mine: Sequence[float], base: Sequence[float]) -> float:
    """Returns the median of the rounds' quotients."""
    return statistics.median(a / b for a, b in zip(mine, base, strict=True))


# --- the tables


def updates(rounds: int) -> Iterator[str]:
    """Time of an update, beside the multiplications."""
    yield "| an update | time | multiplications |"
    seconds = rounds_of([update_of(size) for size in SIZES], rounds, repeat=2)
    for size, found in zip(SIZES[1:], seconds[1:], strict=True):
        wanted = size.products / PAPER.products
        yield f"| {size.name} | × {multiple(found, seconds[0]):.2f} | × {wanted:.2f} |"


def memory(rounds: int) -> Iterator[str]:
    """Bytes kept for the backward pass, beside the formula."""
    yield "| kept for the backward pass | MB | formula |"
    for size in SIZES:
        yield f"| {size.name} | {bytes_kept(size) / 1e6:.1f} | {size.kept / 1e6:.1f} |"


def pool_bytes(S: int) -> float:
    """Returns a pool's bytes a step, of float32 observations and actions."""
    return 4 * S + 4 * ACTIONS + 4 + 4


def write(folder: Path, steps: int, S: int) -> str:
    """Writes random episodes of 500 steps, and returns their path."""
    rng = np.random.default_rng(0)
    episodes = (
        dict(
            obs=rng.standard_normal((500, S), np.float32),
            actions=rng.uniform(-1, 1, (500, ACTIONS)).astype(np.float32),
            rewards=np.ones(500),
            terminated=True,
            truncated=False,
        )
        for _ in range(steps // 500)
    )
    write_episodes(episodes, folder / f"{steps}-{S}", *Size(S=S).spaces())
    return str(folder / f"{steps}-{S}")


def settings(data: str, size: Size = PAPER) -> DTConfig:
    """Returns the settings of a small network on some data."""
    observed, acted = size.spaces()
    return (
        DTConfig()
        .environment(observation_space=observed, action_space=acted)
        .offline_data(input_=data, dataset_num_iters_per_learner=1)
        .rl_module(model_config=replace(size, D=16).model())
        .training(train_batch_size_per_learner=4)
        .debugging(seed=0, log_level="ERROR")
    )


def pool(rounds: int) -> Iterator[str]:
    """Bytes of data in memory, beside the formula."""
    yield "| data in memory | bytes a step | formula |"
    with tempfile.TemporaryDirectory() as folder:
        for steps, S in ((20_000, 11), (200_000, 11), (20_000, 110), (20_000, 1100)):
            algo = settings(write(Path(folder), steps, S), Size(S=S)).build_algo()
            found = ray.get(algo.offline_data.supply.pool).nbytes / steps
            algo.stop()
            yield f"| {steps:,} steps of S {S} | {found:.1f} | {pool_bytes(S):.0f} |"


def stream(rounds: int) -> Iterator[str]:
    """Steps a second that are read into the pool."""
    yield "| reading Parquet on two cores | steps/s | MB/s of the pool |"
    with tempfile.TemporaryDirectory() as folder:
        for steps, S in ((1_000_000, 11), (300_000, 110), (40_000, 1100)):
            config = settings(write(Path(folder), steps, S), Size(S=S))
            config.validate()
            # the difference of two sizes is the reading alone
            half = settings(write(Path(folder), steps // 2, S), Size(S=S))
            half.validate()
            whole, part = rounds_of([_read(config), _read(half)], rounds)
            seconds = statistics.median(a - b for a, b in zip(whole, part, strict=True))
            rate = steps / 2 / seconds
            yield f"| S {S} | {rate:,.0f} | {rate * pool_bytes(S) / 1e6:.0f} |"


def _read(config: DTConfig) -> Callable[[], object]:
    return lambda: DTOfflineData(config)


def evaluation(rounds: int) -> Iterator[str]:
    """Time of a step of all environments of a runner."""
    yield "| a step of all environments | time | of an environment |"
    with tempfile.TemporaryDirectory() as folder:
        data = write(Path(folder), 5_000, 11)
        kinds = [
            (attention, K, envs)
            for attention in ("context", "window")
            for K, envs in ((20, 16), (20, 4), (20, 64), (10, 16), (40, 16))
        ]
        algos = [_evaluator(data, *kind) for kind in kinds]
        seconds = rounds_of([algo.evaluate for algo in algos], rounds)
        for (attention, K, envs), found in zip(kinds, seconds, strict=True):
            base = seconds[[kind[0] for kind in kinds].index(attention)]
            times = multiple(found, base)
            name = f'"{attention}", K {K}, {envs} environments'
            yield f"| {name} | × {times:.2f} | × {times * 16 / envs:.2f} |"
        for algo in algos:
            algo.stop()


def _evaluator(data: str, attention: str, K: int, envs: int) -> Any:
    env = dict(terminate_when_unhealthy=False, max_episode_steps=80)
    return (
        DTConfig()
        .environment("Hopper-v5", env_config=env)
        .offline_data(input_=data)
        .rl_module(model_config=replace(PAPER, K=K).model(attention=attention))
        .training(return_scale=1000.0)
        .env_runners(num_envs_per_env_runner=envs)
        .evaluation(target_returns=[3000.0], evaluation_duration=envs)
        .debugging(seed=0, log_level="ERROR")
        .build_algo()
    )


TABLES: dict[str, Callable[[int], Iterator[str]]] = {
    "updates": updates,
    "memory": memory,
    "pool": pool,
    "stream": stream,
    "evaluation": evaluation,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=TABLES, default=list(TABLES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--into", type=Path, help="the document to put the tables into")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    parts = []
    for name in args.only:
        head, *lines = TABLES[name](args.rounds)
        parts.append("\n".join([head, "|---|---|---|", *lines]))
        print(parts[-1], "\n", flush=True)
    ray.shutdown()
    if args.into:
        insert(args.into, "\n\n".join(parts), BEGIN, END)


if __name__ == "__main__":
    main()
