"""An environment whose every step is predictable."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from rllib_dt.spaces.trees import by_leaf, flatten, leaves


class Lengths(gym.Env):
    """Episodes of 3 or 41 steps, chosen by the reset seed; the reward is 1 per step.

    Observations are (timestep, length, last action). Short episodes end by termination, long
    ones by truncation. `LOG` collects (length, actions) of each finished episode.
    """

    SHORT, LONG = 3, 41
    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-2.0, 2.0, (1,), np.float32)

    # a class attribute, since an environment gets only a copy of its config
    LOG = []

    def __init__(self, config=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = int(self.np_random.choice([self.SHORT, self.LONG]))
        self.t, self.actions = 0, []
        return self._observation(0.0), {}

    def step(self, action):
        assert self.t < self.length, "stepped behind the episode's end"
        assert self.action_space.contains(np.asarray(action, np.float32))
        self.t += 1
        self.actions.append(float(action[0]))
        over = self.t == self.length
        if over:
            self.LOG.append((self.length, self.actions))
        short = self.length == self.SHORT
        return self._observation(action[0]), 1.0, over and short, over and not short, {}

    def _observation(self, action):
        return np.array([self.t, self.length, action], np.float32)


class Sampled(gym.Env):
    """Observations are samples of a space, in episodes of 7 steps; the reward is 1 per step.

    The config names the spaces: `observation_space` and `action_space`.
    """

    STEPS = 7

    def __init__(self, config):
        self.observation_space = config["observation_space"]
        self.action_space = config["action_space"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        taken = flatten(self.action_space, action)
        for path, space in leaves(self.action_space).items():
            value = np.asarray(by_leaf(taken)[path], space.dtype)
            assert space.contains(value if value.ndim else value.item()), action
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == self.STEPS, False, {}


class Masked(gym.Env):
    """Allows some of 5 actions at each step; an illegal one ends the run. Episodes of 50 steps."""

    STEPS = 50

    def __init__(self, config):
        self.action_space = gym.spaces.Discrete(5, start=2)
        self.observation_space = gym.spaces.Dict(
            action_mask=gym.spaces.MultiBinary(5),
            observations=gym.spaces.Box(-1.0, 1.0, (3,)),
        )

    def _observe(self):
        self.mask = self.np_random.integers(0, 2, 5).astype(np.int8)
        self.mask[self.np_random.integers(5)] = 1
        seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return {"action_mask": self.mask, "observations": seen}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action):
        assert self.mask[int(action) - 2], f"{action} is not legal: {self.mask}"
        self.t += 1
        return self._observe(), 1.0, self.t == self.STEPS, False, {}
