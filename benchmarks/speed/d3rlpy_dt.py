"""Contender: d3rlpy's Decision Transformer, in a separate environment (`d3rlpy_env.py`)."""

from benchmarks.speed import contender as c  # isort: skip  redirects standard output

import os

import d3rlpy
import numpy as np
import torch
from d3rlpy.torch_utility import TorchTrajectoryMiniBatch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
rng = np.random.default_rng(0)
EPISODES, LENGTH = 200, 1000
dataset = d3rlpy.dataset.MDPDataset(
    observations=rng.standard_normal((EPISODES * LENGTH, c.OBSERVATIONS)).astype(np.float32),
    actions=rng.uniform(-1, 1, (EPISODES * LENGTH, c.ACTIONS)).astype(np.float32),
    rewards=rng.uniform(0, 1, EPISODES * LENGTH).astype(np.float32),
    terminals=np.tile(np.arange(LENGTH) == LENGTH - 1, EPISODES).astype(np.float32),
)
algo = d3rlpy.algos.DecisionTransformerConfig(
    batch_size=c.WINDOWS,
    learning_rate=c.LEARNING_RATE,
    context_size=c.CONTEXT,
    max_timestep=c.MAX_STEPS,
    num_heads=c.HEADS,
    num_layers=c.LAYERS,
    attn_dropout=c.DROPOUT,
    resid_dropout=c.DROPOUT,
    embed_dropout=c.DROPOUT,
    activation_type="relu",
    encoder_factory=d3rlpy.models.VectorEncoderFactory([c.WIDTH], exclude_last_activation=True),
    optim_factory=d3rlpy.optimizers.AdamWFactory(
        weight_decay=c.WEIGHT_DECAY, clip_grad_norm=c.CLIP
    ),
    observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(),
    reward_scaler=d3rlpy.preprocessing.MultiplyRewardScaler(1 / c.RETURN_SCALE),
).create(device="cpu:0")
algo.build_with_dataset(dataset)
algo.config.observation_scaler.fit_with_transition_picker(
    dataset.episodes, dataset.transition_picker
)


def draw() -> TorchTrajectoryMiniBatch:
    """Draws a batch as d3rlpy's own training loop does."""
    return TorchTrajectoryMiniBatch.from_batch(
        batch=dataset.sample_trajectory_batch(c.WINDOWS, length=c.CONTEXT),
        device="cpu:0",
        observation_scaler=algo.config.observation_scaler,
        reward_scaler=algo.config.reward_scaler,
    )


fixed = draw()


def train(n: int) -> None:
    """Runs n updates on one batch."""
    for step in range(n):
        algo.impl.update(fixed, step)


def batch(n: int) -> None:
    """Draws n batches."""
    for _ in range(n):
        draw()


env = c.make_hopper()
policy = algo.as_stateful_wrapper(target_return=c.TARGET)


def evaluate(n: int) -> None:
    """Takes n steps in one environment, as d3rlpy's own evaluation does."""
    done = True
    for _ in range(n):
        if done:
            policy.reset()
            observation, reward = env.reset()[0], 0.0
        action = policy.predict(observation, reward)
        observation, reward, terminated, truncated, _ = env.step(action)
        done = terminated or truncated


if __name__ == "__main__":
    c.serve(
        dict(train=train, batch=batch, evaluate=evaluate),
        dict(d3rlpy=d3rlpy.__version__, torch=torch.__version__),
    )
