"""Attention over a band of 3K tokens: the cache of a running episode stays exact forever."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_dt import DT, DTModelConfig
from rllib_dt.episodes.windows import Window
from rllib_dt.huggingface import load_pretrained, save_pretrained
from rllib_dt.learning.rl_module import DTTorchRLModule
from rllib_dt.network.cache import RollingCache
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.network.transformer import causal_mask
from rllib_dt.rollout.connector import TARGET_RETURN
from rllib_dt.spaces.leaves import step_layout
from tests.conftest import SHIPPED, cartpole_config, make_episodes, tiny_config
from tests.training import learner_results, same, weights

K, S, A = 3, 5, 2
WINDOW = dict(attention="window", context_length=K)
OBSERVATIONS = Box(-np.inf, np.inf, (S,))
SPACES = [Box(-2.0, 0.5, (A,)), Discrete(4, start=-3)]
IDS = ["box", "discrete"]


def network(space, seed=0, **model):
    torch.manual_seed(seed)
    settings = dict(hidden_size=26, n_layer=3, n_head=2, max_ep_len=1100) | WINDOW | model
    net = DecisionTransformer(DTModelConfig(**settings), OBSERVATIONS, space).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    net.set_normalization(torch.randn(S), torch.rand(S) + 0.5, 13.0)
    return net


def recorded(space, steps, seed):
    """A random episode as `forward` takes it, with shapes (1, T, …)."""
    g = torch.Generator().manual_seed(seed)
    if isinstance(space, Discrete):
        actions = torch.randint(0, int(space.n), (1, steps), generator=g) + int(space.start)
    else:
        actions = torch.rand(1, steps, A, generator=g) * 2.5 - 2.0
    return dict(
        observations=torch.randn(1, steps, S, generator=g),
        actions=actions,
        returns_to_go=torch.randn(1, steps, 1, generator=g) * 20,
        timesteps=torch.arange(steps)[None],
    )


def outputs_and_actions(net, data):
    outputs = net(**data, only_actions=True).action_outputs[0]
    return outputs, net.action_head.act(outputs)


@pytest.mark.semantics(26)
@pytest.mark.parametrize(
    ("space", "model"),
    [
        (SPACES[0], dict(n_layer=1)),
        pytest.param(SPACES[1], dict(n_layer=3), marks=pytest.mark.slow),
        (SPACES[0], dict(n_layer=2, condition_on_return=False)),
    ],
    ids=["box", "discrete", "box, two tokens a step"],
)
def test_the_cache_is_exact_over_a_thousand_steps_with_resets_in_some_slots(space, model):
    """Slots reset at different times, pause now and then, and come in any order."""
    net = network(space, **model)
    cache = RollingCache(net.config, 4)
    rng = np.random.default_rng(0)
    episodes = [recorded(space, 1000 if slot == 2 else 90, seed=slot) for slot in range(4)]
    wanted_outputs, want = zip(*(outputs_and_actions(net, data) for data in episodes), strict=True)
    lengths = [1, 17, 1000, 90]  # the third never resets
    times = [0] * 4
    act = net.action_head.act  # replaced by a function that keeps the outputs
    outputs_of_step = []
    net.action_head.act = lambda x, **kw: outputs_of_step.append(x) or act(x, **kw)
    compared = 0
    while times[2] < 1000:
        slots = rng.permutation(4)[: rng.integers(1, 5)]
        pair = {
            name: torch.cat([episodes[s][name][:, [max(0, times[s] - 1), times[s]]] for s in slots])
            for name in episodes[0]
        }
        pair["actions"][:, 1] = 99  # not taken yet
        mask = torch.tensor([[times[s] > 0, True] for s in slots])
        actions = net.step(cache, torch.as_tensor(slots), Window(**pair, mask=mask))
        for row, slot in enumerate(slots):
            t = times[slot]
            torch.testing.assert_close(
                outputs_of_step[-1][row], wanted_outputs[slot][t], atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(actions[row], want[slot][t], atol=1e-5, rtol=1e-5)
            times[slot] = 0 if t + 1 == lengths[slot] and slot != 2 else t + 1
            compared += 1
    assert compared > 2000


def test_an_episode_with_nan_does_not_poison_the_next_one_in_its_slot():
    net = network(SPACES[0])
    cache = RollingCache(net.config, 2)
    spoilt, clean = recorded(SPACES[0], 7, seed=0), recorded(SPACES[0], 9, seed=1)
    spoilt["observations"][:, 3:] = float("nan")
    want = outputs_and_actions(net, clean)[1]
    for data in (spoilt, clean):
        for t in range(data["timesteps"].shape[1]):
            pair = {name: column[:, [max(0, t - 1), t]] for name, column in data.items()}
            window = Window(**pair, mask=torch.tensor([[t > 0, True]]))
            action = net.step(cache, torch.tensor([1]), window)
    torch.testing.assert_close(action[0], want[-1], atol=1e-5, rtol=1e-5)


def test_the_band_covers_the_last_tokens_and_excludes_padding():
    real = torch.tensor([[False, True, True, True, True]])
    got = causal_mask(real, 5, band=3)[0, 0].int().tolist()
    assert got == [
        [1, 0, 0, 0, 0],  # padding attends to itself, so that its softmax is finite
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_a_token_looks_no_further_back_than_the_layers_reach():
    """A token reaches n_layer · K steps and the action before; in the paper's model, K steps."""
    net = network(SPACES[0], n_layer=2)
    data = recorded(SPACES[0], 40, seed=1)
    base = net(**data, only_actions=True).action_preds[0, -1]
    reach = net.config.receptive_steps
    assert reach == 2 * K + 1
    for t, wanted in ((39 - reach, False), (40 - reach + 1, True)):
        changed = dict(data, observations=data["observations"].clone())
        changed["observations"][:, t] += 1.0
        moved = net(**changed, only_actions=True).action_preds[0, -1] - base
        assert bool(moved.abs().max() > 1e-6) is wanted, t


def test_a_rolling_cache_for_a_context_model_is_refused():
    with pytest.raises(ValueError, match="a rolling cache needs attention='window'"):
        RollingCache(DTModelConfig(), 1)


def test_segment_settings_are_checked():
    assert DTModelConfig(**WINDOW).window_length == 3 * K
    assert DTModelConfig(**WINDOW, segment_length=7).window_length == 7
    assert DTModelConfig(context_length=K).window_length == K
    with pytest.raises(ValueError, match="belongs to attention='window'"):
        DTModelConfig(segment_length=7).validate()
    with pytest.raises(ValueError, match="segment_length=2 is less than context_length=3"):
        DTModelConfig(**WINDOW, segment_length=2).validate()
    with pytest.raises(ValueError, match="attention='band' is not one of"):
        DTModelConfig(attention="band").validate()


# ---- in RLlib


def serve(space, net_seed=0):
    """An env-to-module pipeline and a module, as a runner has them."""
    config = tiny_config("nowhere", **WINDOW).environment(
        observation_space=OBSERVATIONS, action_space=space
    )
    spaces = {"__env_single__": (OBSERVATIONS, space)}
    torch.manual_seed(net_seed)
    module = DTTorchRLModule(
        observation_space=OBSERVATIONS, action_space=space, model_config=config.model_config
    )
    return config.build_env_to_module_connector(spaces=spaces), module.eval()


def started(space, seed):
    episode = SingleAgentEpisode(observation_space=OBSERVATIONS, action_space=space)
    episode.custom_data[TARGET_RETURN] = 12.0
    rng = np.random.default_rng(seed)
    episode.add_env_reset(rng.standard_normal(S, dtype=np.float32))
    return episode, rng


def ask(pipeline, module, episodes):
    batch = pipeline(rl_module=module, episodes=episodes, batch={}, explore=False, shared_data={})
    return module.forward_inference(batch)["actions"], batch


def wanted(module, episode):
    """The newest step's action, computed from the whole episode at once."""
    T = len(episode) + 1
    space = episode.action_space
    shape, dtype = step_layout(space)
    actions = np.zeros((T, *shape), dtype)
    rewards = np.zeros(T)
    if T > 1:
        actions[:-1], rewards[1:] = episode.get_actions(), episode.get_rewards()
    window = Window(
        observations=torch.as_tensor(np.stack(episode.get_observations()))[None],
        actions=torch.as_tensor(actions)[None],
        returns_to_go=torch.as_tensor(12.0 - np.cumsum(rewards))[None, :, None],
        timesteps=torch.arange(T)[None],
        mask=torch.ones(1, T, dtype=torch.bool),
    )
    return module.network.act(window)[0]


@pytest.mark.semantics(22, 23, 24, 26)
@pytest.mark.parametrize("space", SPACES, ids=IDS)
def test_a_runner_computes_only_new_steps_and_acts_as_if_on_the_whole_episode(cluster, space):
    pipeline, module = serve(space)
    running = [started(space, seed) for seed in range(3)]
    for step in range(60):
        if step == 7:  # one slot's episode ends, another begins
            running[1] = started(space, 10)
        if step == 20:  # one more episode joins
            running.append(started(space, 11))
        if step == 30:  # new weights make the whole cache invalid
            state = {k: v * 1.1 for k, v in module.get_state().items()}
            module.set_state(state)
        asked = [e for e, _ in running] if step % 5 else [e for e, _ in running][::-1][:2]
        actions, batch = ask(pipeline, module, asked)
        again, _ = ask(pipeline, module, asked)
        assert torch.equal(actions, again)
        for action, episode in zip(actions, asked, strict=True):
            torch.testing.assert_close(action, wanted(module, episode), atol=1e-5, rtol=1e-5)
        if step not in (20, 30) and step % 5 and (step - 1) % 5:
            assert batch["loss_mask"].shape[1] == 2
        for action, episode in zip(actions, asked, strict=True):
            rng = running[[e for e, _ in running].index(episode)][1]
            episode.add_env_step(
                rng.standard_normal(S, dtype=np.float32), action.numpy(), float(rng.random())
            )


def test_the_cache_is_in_neither_outputs_nor_states(cluster):
    space = SPACES[0]
    pipeline, module = serve(space)
    episode, _ = started(space, 0)
    before = set(module.get_state())
    batch = pipeline(rl_module=module, episodes=[episode], batch={}, explore=False, shared_data={})
    assert set(module.forward_inference(batch)) == {"actions"}
    assert set(module.get_state()) == before
    assert module._policy._cache is not None


def window_cartpole(**evaluation):
    config = cartpole_config(SHIPPED, **WINDOW)
    return config.evaluation(**evaluation)


@pytest.mark.semantics(24)
@pytest.mark.slow
def test_every_layout_of_slots_and_runners_yields_the_same_results(cluster):
    def run(envs, runners):
        config = window_cartpole(evaluation_num_env_runners=runners)
        algo = config.env_runners(num_envs_per_env_runner=envs).build_algo()
        learner_results(algo, 2)
        first, second = algo.evaluate(), algo.evaluate()
        algo.stop()
        assert first == second
        return first["env_runners"]["by_target"]

    want = run(1, 0)
    assert run(3, 0) == want
    assert run(2, 1) == want


def test_an_update_trains_as_many_steps_in_fewer_longer_windows(cluster, tiny_data):
    config = tiny_config(tiny_data[0], **WINDOW).training(train_batch_size_per_learner=12)
    assert config.windows_per_learner == 4  # 4 segments of 9 steps instead of 12 windows of 3
    algo = config.build_algo()
    results = learner_results(algo)
    assert results["num_windows_trained"] == 3 * 4
    assert 0 < results["num_steps_trained"] <= 3 * 36
    algo.stop()


def test_a_window_model_trains_saves_and_restores(cluster, tiny_data, tmp_path):
    def build():
        config = tiny_config(tiny_data[0], **WINDOW).offline_data(validation_fraction=0.3)
        return config.build_algo()

    algo = build()
    learner_results(algo, 2)
    path = algo.save_to_path(tmp_path / "c")
    want = [algo.train()["validation"]["action_loss"] for _ in range(2)]
    at_end = weights(algo)
    algo.stop()
    again = DT.from_checkpoint(path)
    assert again.get_module().network.config.attention == "window"
    assert [again.train()["validation"]["action_loss"] for _ in range(2)] == want
    assert same(weights(again), at_end)
    again.stop()


def test_the_loss_of_a_window_model_falls(cluster, tmp_path):
    from rllib_dt import write_episodes

    episodes = make_episodes([40] * 8)
    for episode in episodes:  # the observation determines the action
        episode["actions"] = np.tanh(np.asarray(episode["obs"])[:40, :2])
    spaces = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))
    write_episodes(episodes, tmp_path / "d", *spaces)
    config = tiny_config(str(tmp_path / "d"), **WINDOW).training(lr=3e-3)
    algo = config.offline_data(dataset_num_iters_per_learner=60).build_algo()
    losses = [learner_results(algo)["action_loss"] for _ in range(3)]
    algo.stop()
    assert losses[2] < 0.5 * losses[0]


def test_a_saved_folder_keeps_window_attention_and_a_hugging_face_one_uses_context(tmp_path):
    net = network(SPACES[0], segment_length=11)
    save_pretrained(net, tmp_path / "ours")
    assert load_pretrained(tmp_path / "ours").config == net.config
    (tmp_path / "ours" / "rllib_dt.json").unlink()
    (tmp_path / "ours" / "rllib_dt.safetensors").unlink()
    foreign = load_pretrained(tmp_path / "ours", context_length=K)
    assert foreign.config.attention == "context"
    assert foreign.config.window_length == K
