"""The exported graphs act as the policy does, for a thousand steps with resets."""

import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from rllib_dt import DecisionTransformer, DTModelConfig, TrainedPolicy
from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.policy.context import Contexts
from rllib_dt.spaces.descriptions import space_from_description
from rllib_dt.spaces.trees import at, by_leaf, column_names, flatten, from_leaves, map_tree
from tests.scripts import run_script

onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra")

N, STEPS = 3, 1000
RULE = ReturnRule(clip_rewards=2.0)
VECTOR = Box(-np.inf, np.inf, (5,)), Box(-0.4, 1.7, (2,))
COMPOSITE = (
    Dict(
        camera=Box(0, 255, (7, 6, 3), np.uint8),
        joints=Dict(a=Box(-9, 9, (2, 2)), b=Discrete(4, start=-1)),
        mission=Discrete(3),
        action_mask=MultiBinary(5),
    ),
    Discrete(5),
)
SEVERAL = Tuple([MultiDiscrete([3, 2]), Box(-1, 1, (3,))]), Tuple([MultiBinary(3), Box(0, 2, ())])


def policy(spaces, **settings):
    torch.manual_seed(1)
    sizes = dict(hidden_size=20, n_layer=2, n_head=2, context_length=4, max_ep_len=50)
    network = DecisionTransformer(DTModelConfig(**(sizes | settings)), *spaces).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if spaces is VECTOR:
        network.set_normalization(torch.arange(5.0), torch.arange(5.0) + 0.5, 37.0)
    return TrainedPolicy(network=network, rule=RULE, target_returns=(30.0, 10.0))


class WindowLoop:
    """What someone writes around the graph of `attention="context"`."""

    def __init__(self, session, network):
        self.session = session
        self.contexts = Contexts(
            N, network.config, network.observation_space, network.action_space, RULE
        )

    def act(self, observations, _actions, _targets, _times):
        window = self.contexts.steps(np.arange(N))
        columns = {
            **dict(column_names("observations", window.observations)),
            **dict(column_names("actions", window.actions)),
            "returns_to_go": window.returns_to_go,
            "timesteps": window.timesteps,
            "mask": window.mask,
        }
        return self.session.run(None, columns)


class RingLoop:
    """What someone writes around the graph of `attention="window"`."""

    def __init__(self, session, network):
        self.session = session
        layers, _, *rest = next(i.shape for i in session.get_inputs() if i.name == "cache")
        self.cache = np.zeros((layers, N, *rest), np.float32)

    def act(self, observations, actions, to_go, times):
        stacked = [
            from_leaves({p: np.stack([by_leaf(t)[p] for t in trees]) for p in by_leaf(trees[0])})
            for trees in (observations, actions)
        ]
        *found, self.cache = self.session.run(None, {
            **dict(column_names("observation", stacked[0])),
            **dict(column_names("previous_action", stacked[1])),
            "return_to_go": np.array(to_go, np.float32)[:, None],
            "timestep": np.array(times),
            "cache": self.cache,
        })  # fmt: skip
        return found


@pytest.mark.parametrize(
    ("spaces", "settings", "attention"),
    [
        pytest.param(VECTOR, {}, "context", id="vector-context"),
        *(
            pytest.param(*case, attention, marks=pytest.mark.slow, id=f"{name}-{attention}")
            for name, case, attention in (
                ("composite", (COMPOSITE, dict(ignore=["mission"])), "window"),
                ("vector", (VECTOR, {}), "window"),
                ("composite", (COMPOSITE, dict(ignore=["mission"])), "context"),
                ("several", (SEVERAL, dict(condition_on_return=False)), "context"),
                ("several", (SEVERAL, dict(condition_on_return=False)), "window"),
            )
        ),
    ],
)
def test_a_graph_acts_as_the_policy_does(tmp_path, spaces, settings, attention):
    trained = policy(spaces, attention=attention, **settings)
    network = trained.network
    path = trained.export_onnx(tmp_path / "new" / "policy.onnx")
    session = onnxruntime.InferenceSession(path)
    loop = (WindowLoop if attention == "context" else RingLoop)(session, network)
    actor = trained.actor(30.0, N)
    names = [output.name for output in session.get_outputs() if output.name != "next_cache"]
    observation_space, action_space = spaces
    observation_space.seed(0)
    generator = np.random.default_rng(0)
    empty = map_tree(np.zeros_like, flatten(action_space, action_space.sample()))
    previous, to_go, times = [empty] * N, [30.0] * N, [0] * N
    rewards = np.zeros(N)
    worst, differing, ends = 0.0, 0, generator.integers(1, 70, N)
    for _ in range(STEPS):
        raw = [observation_space.sample() for _ in range(N)]
        seen = [flatten(observation_space, value, network.config.ignore) for value in raw]
        for slot in range(N):
            if isinstance(loop, WindowLoop):
                if times[slot] == 0:
                    loop.contexts.begin(slot, seen[slot], 30.0)
                else:
                    loop.contexts.append(slot, previous[slot], rewards[slot], seen[slot])
        got = loop.act(seen, previous, to_go, times)
        want = actor.predict(batched(observation_space, raw), rewards)
        want = by_leaf(flatten(action_space, want))
        for name, found in zip(names, got, strict=True):
            wanted = want[name.removeprefix("action").removeprefix("/")]
            assert found.shape == wanted.shape
            if wanted.dtype.kind == "f":
                worst = max(worst, float(np.abs(found - wanted).max()))
            else:
                differing += int((found != wanted).sum())
        rewards = generator.normal(size=N) * 2
        previous = [at(from_leaves(want), slot) for slot in range(N)]
        to_go = [float(RULE.step(old, r)) for old, r in zip(to_go, rewards, strict=True)]
        times = [time + 1 for time in times]
        over = [slot for slot in range(N) if times[slot] > ends[slot]]
        if over:
            actor.reset(over)
            for slot in over:
                times[slot], to_go[slot], previous[slot] = 0, 30.0, empty
                ends[slot] = generator.integers(1, 70)
    assert worst < 1e-5
    assert differing == 0


def batched(space, values):
    """A list of values as a batch, nested like the space."""
    if isinstance(space, Dict):
        return {key: batched(inner, [v[key] for v in values]) for key, inner in space.items()}
    if isinstance(space, Tuple):
        inner = enumerate(space.spaces)
        return tuple(batched(s, [value[i] for value in values]) for i, s in inner)
    return np.stack(values)


def test_a_graph_describes_itself_and_needs_neither_torch_nor_us(tmp_path):
    trained = policy(VECTOR)
    trained.network.train().bfloat16()
    path = trained.export_onnx(tmp_path / "policy.onnx")
    assert trained.network.training
    assert trained.network.dtype == torch.bfloat16
    out = run_script(f"""
        import json, sys
        import numpy as np
        import onnxruntime
        session = onnxruntime.InferenceSession({str(path)!r})
        about = json.loads(session.get_modelmeta().custom_metadata_map["rllib_dt"])
        shapes = dict((i.name, i.shape) for i in session.get_inputs())
        for batch in (1, 5):
            K = about["context_length"]
            action, = session.run(None, dict(
                observations=np.zeros((batch, K, 5), np.float32),
                actions=np.zeros((batch, K, 2), np.float32),
                returns_to_go=np.full((batch, K, 1), about["target_returns"][0], np.float32),
                timesteps=np.zeros((batch, K), np.int64),
                mask=np.arange(K)[None].repeat(batch, 0) == K - 1,
            ))
            assert action.shape == (batch, 2)
        assert not set(sys.modules) & {{"torch", "rllib_dt", "ray"}}
        print(json.dumps(about))
    """)
    about = json.loads(out)
    assert space_from_description(about["action_space"]) == VECTOR[1]
    assert (about["clip_rewards"], about["gamma"], about["delayed_reward"]) == (2.0, 1.0, False)
    assert about["target_returns"] == [30.0, 10.0]


def test_a_missing_extra_is_named(tmp_path):
    out = run_script(f"""
        import sys
        sys.modules["onnxscript"] = None
        from gymnasium.spaces import Box
        from rllib_dt import DTModelConfig, DecisionTransformer, TrainedPolicy
        config = DTModelConfig(hidden_size=4, n_layer=1)
        network = DecisionTransformer(config, Box(-1, 1, (2,)), Box(-1, 1, (1,)))
        try:
            TrainedPolicy(network=network).export_onnx({str(tmp_path / "p.onnx")!r})
        except ImportError as error:
            print(error)
    """)
    assert "pip install 'rllib_dt[onnx]'" in out
