"""Checks and measures on a GPU what this repository's machines cannot run.

    python -m benchmarks.gpu [--quick] [--device cuda]

Prints one table of checks and one of updates a second beside `transformers` (its
DecisionTransformerModel with SDPA), at batches of 64, 256 and 1,024 windows and widths of 128 and
512, in fp32 and bf16. Exits with 1 if a check fails, and with 2 if there is no GPU. `--device cpu`
runs the same code on a CPU, where the checks of copies and waiting mean nothing and are left out.
Needs the extra `huggingface`.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from gymnasium.spaces import Box

from benchmarks.parts.steps import Step, action_loss, full_windows, in_training, make_update
from rllib_dt import DT, DecisionTransformer, DTConfig, DTModelConfig, write_episodes
from rllib_dt.episodes.windows import Window
from rllib_dt.types import State

OBSERVATIONS, ACTIONS, CONTEXT = 11, 3, 20
SPACES = Box(-np.inf, np.inf, (OBSERVATIONS,)), Box(-1.0, 1.0, (ACTIONS,))
NO_DROPOUT = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
UPDATES = 20
"""Updates of one `train()`."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check, and what it found."""

    name: str
    passed: bool
    found: str


def write_data(folder: str) -> str:
    """Writes 20 random episodes of 500 steps, and returns their path."""
    rng = np.random.default_rng(0)
    episodes = [
        dict(
            obs=rng.standard_normal((500, OBSERVATIONS)).astype(np.float32),
            actions=rng.uniform(-1, 1, (500, ACTIONS)).astype(np.float32),
            rewards=rng.uniform(0, 1, 500),
            terminated=True,
            truncated=False,
        )
        for _ in range(20)
    ]
    write_episodes(episodes, Path(folder) / "data", *SPACES)
    return str(Path(folder) / "data")


def settings(data: str, device: torch.device, **model: Any) -> DTConfig:
    """Returns the settings of the checks, whose learner is in this process."""
    return (
        DTConfig()
        .environment(observation_space=SPACES[0], action_space=SPACES[1])
        .offline_data(input_=data, dataset_num_iters_per_learner=UPDATES)
        .rl_module(model_config=DTModelConfig(context_length=CONTEXT, max_ep_len=500, **model))
        .training(lr=1e-3, train_batch_size_per_learner=64)
        .learners(num_learners=0, num_gpus_per_learner=int(device.type == "cuda"))
        .debugging(seed=0, log_level="ERROR")
    )


@contextmanager
def built(config: DTConfig) -> Iterator[DT]:
    """Yields an algorithm, and stops it."""
    algo: DT = config.build_algo()
    try:
        yield algo
    finally:
        algo.stop()


def losses(config: DTConfig, calls: int = 3) -> list[float]:
    """Returns the losses of some calls of `train()`."""
    with built(config) as algo:
        return [_loss(algo) for _ in range(calls)]


def _loss(algo: DT) -> float:
    return float(algo.train()["learners"]["default_policy"]["action_loss"])


def worst(ours: list[float], theirs: list[float]) -> float:
    """Returns the largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


# --- checks


def check_bf16(data: str, device: torch.device) -> Check:
    """Mixed precision loses little."""
    plain = losses(settings(data, device, **NO_DROPOUT))
    mixed = losses(settings(data, device, **NO_DROPOUT).training(precision="bf16"))
    error = worst(mixed, plain)
    return Check(name="bf16: losses as in fp32", passed=error < 0.02, found=f"{error:.1e} off")


def check_compiled(data: str, device: torch.device) -> Check:
    """A compiled step has the same losses."""
    plain = losses(settings(data, device, **NO_DROPOUT))
    config = settings(data, device, **NO_DROPOUT).framework(torch_compile_learner=True)
    error = worst(losses(config), plain)
    return Check(name="compiled: losses as without", passed=error < 1e-3, found=f"{error:.1e} off")


def check_resumed(data: str, device: torch.device) -> Check:
    """A resumed run goes on with the same losses, dropout included."""
    with tempfile.TemporaryDirectory() as folder:
        with built(settings(data, device)) as algo:
            algo.train()
            path = algo.save_to_path(f"{folder}/checkpoint")
            want = [_loss(algo) for _ in range(2)]
        resumed = DT.from_checkpoint(path)
        try:
            error = worst([_loss(resumed) for _ in range(2)], want)
        finally:
            resumed.stop()
    return Check(name="resumed: the same losses", passed=error < 1e-4, found=f"{error:.1e} off")


def check_fused(data: str, device: torch.device) -> Check:
    """The optimiser is one kernel, on the device."""
    with built(settings(data, device)) as algo:
        algo.train()
        learner = algo.learner_group._learner
        (optimizer,) = learner._named_optimizers.values()
        kinds = {p.device.type for group in optimizer.param_groups for p in group["params"]}
        is_fused = bool(optimizer.defaults["fused"])
    found = f"fused={is_fused}, on {sorted(kinds)}"
    return Check(name="AdamW", passed=is_fused and kinds == {device.type}, found=found)


def check_pinned(data: str, device: torch.device) -> Check:
    """Batches wait in pinned memory, so that their copies need not be waited for."""
    with built(settings(data, device)) as algo:
        algo.train()
        drawn, _ = algo.learner_group._learner._batches.next()
        pinned = [bool(column.is_pinned()) for column in drawn.columns().values()]
    found = f"{sum(pinned)} of {len(pinned)} columns"
    return Check(name="pinned batches", passed=all(pinned), found=found)


def check_waits(data: str, device: torch.device) -> Check:
    """No update waits for the device: as many reads in a call of 20 updates as in one of 40."""
    counts = []
    for updates in (UPDATES, 2 * UPDATES):
        config = settings(data, device).offline_data(dataset_num_iters_per_learner=updates)
        with built(config) as algo:
            algo.train()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    algo.train()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(one.message).lower() for one in caught))
    found = f"{counts[0]} in {UPDATES} updates, {counts[1]} in {2 * UPDATES}"
    return Check(name="waiting for the device", passed=counts[0] == counts[1], found=found)


def check_memory(data: str, device: torch.device) -> Check:
    """Memory on the device does not grow."""
    with built(settings(data, device)) as algo:
        peaks = []
        for _ in range(2):
            algo.train()
            torch.cuda.reset_peak_memory_stats()
            algo.train()
            peaks.append(torch.cuda.max_memory_allocated() / 1e6)
    found = f"{peaks[0]:.0f} MB, then {peaks[1]:.0f}"
    return Check(name="memory", passed=peaks[1] <= 1.05 * peaks[0], found=found)


ANYWHERE = (check_bf16, check_compiled, check_resumed, check_fused)
ON_A_GPU = (check_pinned, check_waits, check_memory)


# --- measurements


def our_step(window: Window, width: int, dtype: torch.dtype | None, device: torch.device) -> Step:
    """Returns an update of this package's network."""
    config = DTModelConfig(context_length=CONTEXT, hidden_size=width, max_ep_len=500)
    network = in_training(DecisionTransformer(config, *SPACES).to(device))
    return make_update(network, lambda: action_loss(network, window, dtype))


def their_step(window: Window, width: int, dtype: torch.dtype | None, device: torch.device) -> Step:
    """Returns an update of transformers' network."""
    import transformers

    config = transformers.DecisionTransformerConfig(
        state_dim=OBSERVATIONS, act_dim=ACTIONS, max_ep_len=500, hidden_size=width, n_layer=3,
        n_head=1, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.DecisionTransformerModel(config).to(device).train()
    real = window.mask.float()

    def loss() -> torch.Tensor:
        enabled = dtype is not None
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=enabled):
            predicted = model(
                states=window.observations, actions=window.actions, rewards=None,
                returns_to_go=window.returns_to_go, timesteps=window.timesteps,
                attention_mask=real, return_dict=False,
            )[1]  # fmt: skip
        return (predicted - window.actions).square().mean()

    return make_update(model, loss)


def updates_per_second(step: Step, updates: int, device: torch.device) -> float:
    """Times updates, waiting for the device before and after."""
    step()
    _wait(device)
    started = time.perf_counter()
    for _ in range(updates):
        step()
    _wait(device)
    return updates / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measured(
    windows: int, width: int, precision: str, device: torch.device, rounds: int, updates: int
) -> State:
    """Measures both in turns; medians of the rounds, and the most memory of ours."""
    window = full_windows(windows, CONTEXT, OBSERVATIONS, ACTIONS, device)
    dtype = torch.bfloat16 if precision == "bf16" else None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ours = our_step(window, width, dtype, device)
    updates_per_second(ours, 2, device)
    memory = torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else float("nan")
    theirs = their_step(window, width, dtype, device)
    pairs = [
        tuple(updates_per_second(step, updates, device) for step in (ours, theirs))
        for _ in range(rounds)
    ]
    return {
        "windows": windows,
        "width": width,
        "precision": precision,
        "ours": statistics.median(a for a, _ in pairs),
        "transformers": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
        "MB": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="one small size, one round")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU: torch.cuda.is_available() is False", file=sys.stderr)
        sys.exit(2)
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "a CPU, in place of a GPU"
    print(f"{name}, torch {torch.__version__}\n")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(folder)
        checks = ANYWHERE + (ON_A_GPU if on_gpu else ())
        results = [check(data, device) for check in checks]
    ray.shutdown()
    print("| check | | found |\n|---|---|---|")
    for one in results:
        print(f"| {one.name} | {'passed' if one.passed else 'FAILED'} | {one.found} |")
    sizes = [(8, 32)] if args.quick else [(b, w) for b in (64, 256, 1024) for w in (128, 512)]
    print(
        "\n| windows | width | precision | ours, updates/s | transformers | ratio | MB |"
        "\n|---|---|---|---|---|---|---|"
    )
    for windows, width in sizes:
        for precision in ("fp32",) if args.quick else ("fp32", "bf16"):
            row = measured(windows, width, precision, device, *((1, 2) if args.quick else (7, 30)))
            numbers = f"{row['ours']:.1f} | {row['transformers']:.1f} | {row['ratio']:.2f}"
            print(f"| {windows:,} | {width} | {precision} | {numbers} | {row['MB']:.0f} |")
    sys.exit(0 if all(one.passed for one in results) else 1)


if __name__ == "__main__":
    main()
