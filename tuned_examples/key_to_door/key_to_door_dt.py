"""Trains on random walks through Key-to-Door: Decision Transformer, %BC or BC.

`python -m tuned_examples.key_to_door.record --folder walks --episodes 1000` records walks, and
`python -m tuned_examples.key_to_door.key_to_door_dt --data walks [--method dt] [--as-test]
[--no-tune] …` (the flags of RLlib's examples) trains on them.

The context is the whole episode of 90 steps. "dt" is asked for a return of 1; since 3 walks in 100
show what that takes, their steps are weighed so that they count as much as all others. "dt-plain"
weighs every step alike. "percent-bc" clones the walks that succeed, and "bc" all of them, with the
same network, which is not given the return (Chen et al. 2021, §5.4, 5.5). The likeliest actions are
taken.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
from ray import tune

from rllib_dt import DTConfig, DTModelConfig, DTTorchLearner, Window
from rllib_dt.examples import run_example
from tuned_examples.key_to_door.environment import END_ROOM_STEPS, KeyToDoor

STEPS = 90
METHODS = ["dt", "dt-plain", "percent-bc", "bc"]
MANY = 5000
"""From this many walks on, training takes longer."""


class BalancedLearner(DTTorchLearner):
    """Lets the few steps from which a walk succeeds count as much as all others together.

    `learner_config_dict["share"]` is their share.
    """

    def step_weights(self, window: Window) -> torch.Tensor:
        """Weighs each step by whether its return-to-go is 1: (B, K), with a mean of about 1."""
        share = self.config.learner_config_dict["share"]
        succeeds = window.returns_to_go[..., 0] > 0.5
        return torch.where(succeeds, 0.5 / share, 0.5 / (1 - share))


def successes(data: Sequence[str]) -> tuple[int, int]:
    """Returns how many recorded walks succeed, and how many there are.

    Raises:
        ValueError: none succeeds.
    """
    files = [file for path in data for file in Path(path).rglob("*.parquet")]
    tables = [pq.read_table(file, columns=["rewards"]) for file in files]
    rewards = [row for table in tables for row in table["rewards"].to_pylist()]
    good = sum(sum(row) > 0 for row in rewards)
    if not good:
        raise ValueError(f"none of the {len(rewards)} walks in {list(data)} succeeds; record more")
    return good, len(rewards)


def num_updates(method: str, walks: int) -> int:
    """Returns the updates that the example trains for."""
    few, many = {"dt": (600, 2000), "dt-plain": (2000, 6000)}.get(method, (200, 1000))
    return many if walks >= MANY else few


def make_config(data: Sequence[str], *, method: str = "dt") -> DTConfig:
    """Returns the settings for training on walks at the given paths.

    Args:
        data: folders of recorded walks.
        method: one of `METHODS`.
    """
    tune.register_env(
        "key-to-door", lambda _: KeyToDoor(STEPS - 2 * END_ROOM_STEPS, as_vector=True)
    )
    good, walks = successes(data)
    updates = num_updates(method, walks)
    is_dt = method in ("dt", "dt-plain")
    config = (
        DTConfig()
        .environment("key-to-door")
        .offline_data(
            input_=list(data),
            dataset_num_iters_per_learner=updates // 10,
            # all walks have the same length
            top_fraction=good / walks if method == "percent-bc" else None,
        )
        .rl_module(
            model_config=DTModelConfig(
                context_length=STEPS,
                hidden_size=32,
                n_layer=2,
                n_head=1,
                activation_function="gelu",
                max_ep_len=STEPS,
                attn_pdrop=0.0,
                condition_on_return=is_dt,
            )
        )
        .training(
            lr=3e-3 if method == "dt-plain" else 1e-3,
            lr_decay="cosine",
            lr_decay_updates=updates,
            warmup_steps=20,
            train_batch_size_per_learner=64,
            weight_decay=1e-2,
            weight_decay_on="matrices",
            grad_clip=1.0,
            return_scale=1.0,
        )
        .env_runners(num_envs_per_env_runner=100)
        .evaluation(target_returns=[1.0], evaluation_duration=100)
    )
    if method == "dt":
        config.training(learner_class=BalancedLearner, learner_config_dict={"share": good / walks})
    return config


if __name__ == "__main__":
    run_example(make_config, reward=0.6, iters=10, options={"method": METHODS})
