"""`condition_on_return=False`: the return's token is dropped, and targets have no effect."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from rllib_dt import DT, DecisionTransformer, DTModelConfig
from rllib_dt.huggingface import save_pretrained
from rllib_dt.policy.actor import Actor
from rllib_dt.policy.manifest import CheckpointError
from tests.conftest import TINY, cartpole_config
from tests.training import same, weights

B, K, S, A = 3, 4, 5, 2


def network(**model):
    torch.manual_seed(0)
    config = DTModelConfig(**(TINY | dict(context_length=K, condition_on_return=False) | model))
    spaces = Box(-np.inf, np.inf, (S,)), Box(-1.0, 1.0, (A,))
    return DecisionTransformer(config, *spaces).eval()


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    return dict(
        observations=torch.randn(B, K, S, generator=g),
        actions=torch.rand(B, K, A, generator=g) * 2 - 1,
        returns_to_go=torch.randn(B, K, 1, generator=g),
        timesteps=torch.arange(K).expand(B, K),
    )


def test_a_step_has_two_tokens_and_no_return_is_read():
    net, data = network(), batch()
    out = net(**data)
    assert out.last_hidden_state.shape == (B, 2 * K, net.config.hidden_size)
    assert out.return_preds is None
    assert out.state_preds.shape == (B, K, S)
    assert not [name for name in net.state_dict() if "embed_return" in name]
    other = data | {"returns_to_go": torch.full((B, K, 1), float("nan"))}
    assert torch.equal(net(**other).action_preds, out.action_preds)
    partial = net(**data, only_actions=True).action_preds
    torch.testing.assert_close(partial, out.action_preds)
    torch.testing.assert_close(net(**data, last_only=True).action_preds, out.action_preds[:, -1:])


def test_an_action_depends_on_what_came_before_it_only():
    net, data = network(), batch()
    base = net(**data).action_preds
    for name in ("observations", "actions"):
        changed = data | {name: data[name].clone()}
        changed[name][:, 2] += 0.5
        moved = (net(**changed).action_preds - base).abs().amax(dim=(0, 2)) > 0
        # its own action is predicted from the observation, not from itself
        assert moved.tolist() == [False, False, name == "observations", True]


@pytest.mark.parametrize("attention", ["context", pytest.param("window", marks=pytest.mark.slow)])
def test_it_trains_evaluates_and_restores(cluster, tmp_path, attention):
    config = cartpole_config(condition_on_return=False, attention=attention)
    config.evaluation(target_returns=[30.0, 3.0], evaluation_duration=3)
    algo = config.build_algo()
    losses = [algo.train()["learners"]["default_policy"]["action_loss"] for _ in range(8)]
    assert min(losses[4:]) < losses[0]
    by_target = algo.evaluate()["env_runners"]["by_target"]
    # each target has the same seeds
    assert by_target["30"]["episode_return_mean"] == by_target["3"]["episode_return_mean"]
    path, kept = algo.save_to_path(tmp_path / "checkpoint"), weights(algo)
    net = algo.get_module().network
    algo.stop()
    actors = [Actor(net, target) for target in (30.0, 3.0)]
    seen = np.random.default_rng(0).standard_normal((5, 1, 4)).astype(np.float32)
    taken = [[int(actor.predict(observation, 1.0)[0]) for observation in seen] for actor in actors]
    assert taken[0] == taken[1]
    algo = DT.from_checkpoint(path)
    assert same(weights(algo), kept)
    algo.train()
    algo.stop()
    other = cartpole_config(attention=attention).build_algo()
    with pytest.raises(CheckpointError, match="condition_on_return is False there and True here"):
        other.restore_from_path(path)
    other.stop()


def test_hugging_faces_model_has_no_such_network(tmp_path):
    with pytest.raises(
        ValueError, match=r"condition_on_return=False drops them; save a checkpoint"
    ):
        save_pretrained(network(), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
