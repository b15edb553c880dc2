"""Contender: `transformers`' DecisionTransformerModel, with the collator of its public tutorial.

The collator and the loop are rewritten after "Train your first Decision Transformer"
(https://huggingface.co/blog/train-decision-transformers), which takes both from kzl's gym code.
"""

from benchmarks.speed import contender as c  # isort: skip  redirects standard output

import functools
import os
import random
from typing import Any

import numpy as np
import torch
import transformers

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch.manual_seed(0)


def make_model(**settings: Any) -> transformers.DecisionTransformerModel:
    """Returns their model in the paper's setting for gym, with changes."""
    setting = dict(
        state_dim=c.OBSERVATIONS, act_dim=c.ACTIONS, max_ep_len=c.MAX_STEPS, hidden_size=c.WIDTH,
        n_layer=c.LAYERS, n_head=c.HEADS, resid_pdrop=c.DROPOUT, embd_pdrop=c.DROPOUT,
        attn_pdrop=c.DROPOUT,
    )  # fmt: skip
    config = transformers.DecisionTransformerConfig(**(setting | settings))
    return transformers.DecisionTransformerModel(config)


model = make_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=c.LEARNING_RATE, weight_decay=c.WEIGHT_DECAY)


class Collator:
    """Draws episodes in proportion to their lengths, and cuts a window from each, one by one."""

    def __init__(self, episodes: int = 200, length: int = 1000):
        rng = np.random.default_rng(0)
        self.episodes = [
            dict(
                obs=rng.standard_normal((length, c.OBSERVATIONS)).astype(np.float32),
                actions=rng.uniform(-1, 1, (length, c.ACTIONS)).astype(np.float32),
                rewards=rng.uniform(0, 1, length).astype(np.float32),
            )
            for _ in range(episodes)
        ]
        every = np.concatenate([e["obs"] for e in self.episodes])
        self.mean, self.std = every.mean(axis=0), every.std(axis=0) + 1e-6
        lengths = np.array([len(e["rewards"]) for e in self.episodes])
        self.share = lengths / lengths.sum()
        self.rng = rng

    def __call__(self) -> dict[str, torch.Tensor]:
        K = c.CONTEXT
        states, actions, returns, timesteps, masks = [], [], [], [], []
        drawn = self.rng.choice(len(self.episodes), size=c.WINDOWS, replace=True, p=self.share)
        for index in drawn:
            episode = self.episodes[int(index)]
            start = random.randint(0, len(episode["rewards"]) - 1)
            obs = episode["obs"][start : start + K]
            n, pad = len(obs), K - len(obs)
            rewards = episode["rewards"][start:]
            to_go = np.array([rewards[i:].sum() for i in range(n)])  # discounted by 1, as they do
            obs = (np.concatenate([np.zeros((pad, c.OBSERVATIONS)), obs]) - self.mean) / self.std
            states.append(obs)
            taken = episode["actions"][start : start + K]
            actions.append(np.concatenate([np.full((pad, c.ACTIONS), -10.0), taken]))
            returns.append(np.concatenate([np.zeros(pad), to_go])[:, None] / c.RETURN_SCALE)
            timesteps.append(np.concatenate([np.zeros(pad), np.arange(start, start + n)]))
            masks.append(np.concatenate([np.zeros(pad), np.ones(n)]))
        batch = dict(states=states, actions=actions, returns_to_go=returns)
        tensors = {k: torch.from_numpy(np.stack(v)).float() for k, v in batch.items()}
        tensors["timesteps"] = torch.from_numpy(np.stack(timesteps)).long()
        tensors["attention_mask"] = torch.from_numpy(np.stack(masks)).float()
        return tensors


collate = Collator()
fixed = collate()


def train(n: int) -> None:
    """Runs n updates on one batch."""
    model.train()
    for _ in range(n):
        preds = model(**fixed, rewards=None, return_dict=False)[1]
        real = fixed["attention_mask"].reshape(-1) > 0
        preds = preds.reshape(-1, c.ACTIONS)[real]
        loss = torch.mean((preds - fixed["actions"].reshape(-1, c.ACTIONS)[real]) ** 2)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c.CLIP)
        optimizer.step()


class Images(torch.nn.Module):
    """The model with the convolutions of Mnih et al. 2015 in place of its linear embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(
            torch.nn.Conv2d(c.IMAGE[0], 32, 8, stride=4), torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 4, stride=2), torch.nn.ReLU(),
            torch.nn.Conv2d(64, 64, 3), torch.nn.ReLU(),
            torch.nn.Flatten(), torch.nn.Linear(3136, c.WIDTH), torch.nn.Tanh(),
        )  # fmt: skip
        self.model = make_model(
            state_dim=c.WIDTH, act_dim=c.IMAGE_ACTIONS, n_layer=c.IMAGE_LAYERS,
            n_head=c.IMAGE_HEADS, action_tanh=False,
        )  # fmt: skip
        self.model.embed_state = torch.nn.Identity()

    def forward(self, frames: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Maps (B, K, 4, 84, 84) bytes and (B, K) actions to (B, K, 6) logits."""
        B, K = actions.shape
        one_hot = torch.nn.functional.one_hot(actions, c.IMAGE_ACTIONS).float()
        return self.model(
            states=self.encoder(frames.flatten(0, 1).float() / 255).view(B, K, -1),
            actions=one_hot, rewards=None, returns_to_go=torch.rand(B, K, 1),
            timesteps=torch.arange(K).expand(B, K), attention_mask=torch.ones(B, K),
            return_dict=False,
        )[1]  # fmt: skip


@functools.cache
def images() -> c.Task:
    """Returns a task that trains on one batch of stacked frames."""
    model = Images().train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=c.LEARNING_RATE, weight_decay=c.WEIGHT_DECAY
    )
    shape = c.IMAGE_WINDOWS, c.IMAGE_CONTEXT
    frames = torch.randint(0, 255, (*shape, *c.IMAGE), dtype=torch.uint8)
    actions = torch.randint(0, c.IMAGE_ACTIONS, shape)

    def train(n: int) -> None:
        for _ in range(n):
            logits = model(frames, actions).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, actions.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), c.CLIP)
            optimizer.step()

    return train


def batch(n: int) -> None:
    """Draws n batches."""
    for _ in range(n):
        collate()


env = c.make_hopper()


@torch.no_grad()
def evaluate(n: int) -> None:
    """Takes n steps in one environment; the model sees the last K."""
    model.eval()
    K, done = c.CONTEXT, True
    for _ in range(n):
        if done:
            obs = torch.from_numpy(env.reset()[0]).float()[None]
            actions, t = torch.zeros(0, c.ACTIONS), 0
            to_go = torch.tensor([[c.TARGET / c.RETURN_SCALE]])
        actions = torch.cat([actions, torch.zeros(1, c.ACTIONS)])
        normal = (obs - torch.from_numpy(collate.mean)) / torch.from_numpy(collate.std)
        window = [normal[-K:], actions[-K:], to_go[-K:]]
        real = len(window[0])
        padded = [torch.cat([torch.zeros(K - real, v.shape[1]), v.float()])[None] for v in window]
        times = torch.cat([torch.zeros(K - real).long(), torch.arange(t + 1)[-K:]])[None]
        mask = torch.cat([torch.zeros(K - real), torch.ones(real)])[None].long()
        states, past, returns = padded
        preds = model(
            states=states, actions=past, rewards=None, returns_to_go=returns, timesteps=times,
            attention_mask=mask, return_dict=False,
        )[1]  # fmt: skip
        actions[-1] = preds[0, -1]
        state, reward, terminated, truncated, _ = env.step(actions[-1].numpy())
        obs = torch.cat([obs, torch.from_numpy(state).float()[None]])
        to_go = torch.cat([to_go, to_go[-1:] - float(reward) / c.RETURN_SCALE])
        t, done = t + 1, terminated or truncated


if __name__ == "__main__":
    c.serve(
        dict(train=train, train_images=lambda n: images()(n), batch=batch, evaluate=evaluate),
        dict(transformers=transformers.__version__, torch=torch.__version__),
    )
