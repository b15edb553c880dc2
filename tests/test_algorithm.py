"""DT as an RLlib algorithm: learning, metrics, and refusal of invalid settings and data."""

import math

import numpy as np
import pytest
import ray
import torch
from gymnasium.spaces import Box, Text

from rllib_dt import DT, DTConfig, write_episodes
from rllib_dt.learning.finite import NonFiniteLossError, NonFiniteWeightsError
from rllib_dt.learning.learner import cosine_factor, warmup_factor
from tests.conftest import cartpole_config, make_episodes, tiny_config
from tests.environments import Lengths
from tests.training import NO_DROPOUT, learner_results, same, weights


def use_sgd(learner):
    """Replaces AdamW with plain gradient descent: a step is lr times the gradient."""
    (name,) = learner._named_optimizers
    old = learner._named_optimizers[name]
    new = torch.optim.SGD(old.param_groups[0]["params"], lr=1.0)
    learner._named_optimizers[name] = new
    learner._optimizer_parameters[new] = learner._optimizer_parameters.pop(old)


@pytest.fixture
def algo(cluster, tiny_data):
    built = tiny_config(tiny_data[0]).build_algo()
    yield built
    built.stop()


def test_the_loss_falls_on_learnable_data(cluster, tmp_path):
    episodes = make_episodes([13] * 8)
    for episode in episodes:  # the observation determines the action
        episode["actions"] = np.tanh(episode["obs"][:-1, :2])
    write_episodes(episodes, tmp_path / "d", Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,)))
    config = tiny_config(str(tmp_path / "d"), **NO_DROPOUT)
    config.offline_data(dataset_num_iters_per_learner=100).training(lr=3e-3, grad_clip=None)
    algo = config.build_algo()
    first = learner_results(algo)["action_loss"]
    last = learner_results(algo, 2)["action_loss"]
    algo.stop()
    assert last < first / 4


@pytest.mark.trap(6, 18, 19)
def test_each_iteration_reports_its_updates_windows_steps_and_rates(algo):
    first, second = learner_results(algo), learner_results(algo)
    assert (first["num_updates"], second["num_updates"]) == (3, 3)
    assert (first["num_updates_lifetime"], second["num_updates_lifetime"]) == (3, 6)
    assert first["num_windows_trained"] == 3 * 8
    assert second["num_windows_trained_lifetime"] == 6 * 8
    # windows hold 1 to 5 real steps here, so the step count is below windows times K
    assert 3 * 8 < first["num_steps_trained"] < 3 * 8 * 5
    total = first["num_steps_trained"] + second["num_steps_trained"]
    assert second["num_steps_trained_lifetime"] == total
    assert second["num_passes_over_data"] == pytest.approx(total / 71)
    assert 0 < second["data_wait_share"] < 1
    for name in ("num_updates_per_s", "num_windows_trained_per_s", "num_steps_trained_per_s"):
        assert second[name] > 0
    assert second["learning_rate"] == pytest.approx(1e-3)
    assert math.isfinite(second["gradient_norm"])
    assert algo.metrics.peek("num_env_steps_sampled_lifetime") == total


@pytest.mark.semantics(19)
def test_equal_seeds_train_equal_weights(cluster, tiny_data):
    runs = []
    for seed in (3, 3, 4):
        algo = tiny_config(tiny_data[0], **NO_DROPOUT).debugging(seed=seed).build_algo()
        algo.train()
        runs.append(weights(algo))
        algo.stop()
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.semantics(32)
def test_warm_up_scales_the_learning_rate_and_continues_after_a_restore(
    cluster, tiny_data, tmp_path
):
    assert [warmup_factor(u, 4) for u in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup_factor(0, 0) == 1.0
    config = tiny_config(tiny_data[0]).training(warmup_steps=10, lr=1e-2)
    algo = config.build_algo()
    assert learner_results(algo)["learning_rate"] == pytest.approx(1e-2 * 3 / 10)
    algo.save_to_path(tmp_path / "ck")
    algo.stop()
    restored = DT.from_checkpoint(tmp_path / "ck")
    assert learner_results(restored)["learning_rate"] == pytest.approx(1e-2 * 6 / 10)
    restored.stop()


def test_a_cosine_falls_from_the_warm_up_to_a_tenth(cluster, tiny_data):
    factors = [cosine_factor(update, 2, 10) for update in (0, 2, 4, 6, 8, 10, 99)]
    assert factors == pytest.approx([1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.1, 0.1])
    config = tiny_config(tiny_data[0]).training(
        lr=1e-2, warmup_steps=2, lr_decay="cosine", lr_decay_updates=6
    )
    algo = config.build_algo()
    for update in (2, 5):  # the last of three updates in each iteration
        learned = algo.train()["learners"]["default_policy"]
        want = 1e-2 * warmup_factor(update, 2) * cosine_factor(update, 2, 6)
        assert learned["learning_rate"] == pytest.approx(want)
    algo.stop()


@pytest.mark.trap(18)
def test_a_learning_rate_schedule_counts_trained_steps(cluster, tiny_data):
    config = tiny_config(tiny_data[0]).training(lr=[[0, 1.0e-2], [1000, 0.0]])
    algo = config.build_algo()
    # the reported rate is the last update's, which does not count that update's own steps yet
    config2 = config.copy(copy_frozen=False).offline_data(dataset_num_iters_per_learner=2)
    other = config2.build_algo()
    before_last = learner_results(other)["num_steps_trained"]
    assert learner_results(algo)["learning_rate"] == pytest.approx(
        1e-2 * (1 - before_last / 1000), rel=1e-4
    )
    algo.stop()
    other.stop()


@pytest.mark.semantics(33)
def test_weight_decay_applies_to_every_parameter(cluster, tiny_data):
    def optimizer_groups(learner):
        optimizer = learner.get_optimizer()
        count = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
        return count, {g["weight_decay"] for g in optimizer.param_groups}

    algo = tiny_config(tiny_data[0]).training(weight_decay=0.123).build_algo()
    (result,) = algo.learner_group.foreach_learner(optimizer_groups)
    count, decays = result.get()
    assert decays == {0.123}
    assert count == sum(p.numel() for p in algo.get_module().network.parameters())
    algo.stop()


@pytest.mark.semantics(33)
def test_weight_decay_may_apply_to_matrices_only(cluster, tmp_path):
    """Linear and convolutional weights decay; embeddings, norms and biases do not."""
    image = Box(0, 255, (5, 5, 2), np.uint8)
    episodes = [
        dict(
            obs=np.zeros((4, 5, 5, 2), np.uint8),
            actions=np.zeros((3, 2)),
            rewards=np.ones(3),
            terminated=True,
            truncated=False,
        )
    ]
    write_episodes(episodes, tmp_path, image, Box(-1.0, 1.0, (2,)))
    config = tiny_config(str(tmp_path)).environment(observation_space=image)
    algo = config.training(weight_decay=0.5, weight_decay_on="matrices").build_algo()

    def decaying(learner):
        names = {id(p): name for name, p in learner.network.named_parameters()}
        groups = learner.get_optimizer().param_groups
        return {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}

    (result,) = algo.learner_group.foreach_learner(decaying)
    found = result.get()
    algo.train()
    algo.stop()
    for name, decay in found.items():
        is_other = name.endswith("bias") or ".ln_" in name or "embed_ln" in name
        assert decay == (0.0 if is_other or name.startswith("embed_timestep") else 0.5), name
    assert {"embed_state.convolutions.0.weight", "backbone.h.0.attn.c_attn.weight"} <= set(found)


def test_gradients_are_clipped_by_their_global_norm(cluster, tiny_data):
    """With plain gradient descent instead of AdamW, the step's length is lr · clip."""

    config = tiny_config(tiny_data[0], **NO_DROPOUT).training(grad_clip=0.01, lr=1.0)
    algo = config.offline_data(dataset_num_iters_per_learner=1).build_algo()
    algo.learner_group.foreach_learner(use_sgd)
    before = weights(algo)
    reported = learner_results(algo)["gradient_norm"]
    after = weights(algo)
    moved = torch.sqrt(sum((after[k] - before[k]).square().sum() for k in before))
    algo.stop()
    assert reported > 0.01
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.trap(13)
def test_a_non_finite_loss_stops_the_run_and_leaves_the_weights_unchanged(algo, tmp_path):
    algo.train()
    algo.save_to_path(tmp_path / "good")
    good = weights(algo)

    def spoil(learner):
        with torch.no_grad():
            learner.module["default_policy"].unwrapped().network.predict_action.bias.fill_(np.nan)

    algo.learner_group.foreach_learner(spoil)
    spoiled = weights(algo)
    with pytest.raises(NonFiniteLossError, match=r"not finite at update 3.*Lower lr"):
        algo.train()
    assert all(
        torch.equal(v.nan_to_num(7), spoiled[k].nan_to_num(7)) for k, v in weights(algo).items()
    )
    restored = DT.from_checkpoint(tmp_path / "good")
    assert same(weights(restored), good)
    restored.stop()


def test_weights_that_are_not_finite_stop_the_run_and_reach_no_checkpoint(
    cluster, tiny_data, tmp_path
):
    config = tiny_config(tiny_data[0]).offline_data(dataset_num_iters_per_learner=1)
    algo = config.training(lr=[[0, 1e-3], [1, 1e38]], weight_decay=0.5).build_algo()
    algo.train()
    path = algo.save_to_path(tmp_path / "c")
    with pytest.raises(NonFiniteLossError, match="not finite"):
        learner_results(algo, times=3)
    with pytest.raises(NonFiniteWeightsError, match="the weights are not finite after update"):
        algo.save_to_path(tmp_path / "d")
    algo.stop()
    assert not (tmp_path / "d").exists()
    again = DT.from_checkpoint(path)
    assert all(value.isfinite().all() for value in weights(again).values())
    again.stop()


@pytest.mark.slow
def test_a_remote_learner_trains_the_same_weights_as_a_local_one(cluster, tiny_data):
    runs = []
    for learners in (0, 1):
        config = tiny_config(tiny_data[0], **NO_DROPOUT).learners(num_learners=learners)
        algo = config.build_algo()
        loss = learner_results(algo)["action_loss"]
        runs.append((loss, weights(algo)))
        algo.stop()
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)
    for name, value in runs[0][1].items():
        torch.testing.assert_close(value, runs[1][1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.semantics(12, 13)
@pytest.mark.parametrize(("state_weight", "return_weight"), [(0.0, 0.0), (0.5, 2.0)])
def test_two_learners_apply_the_mean_gradient_of_all_their_valid_steps(
    cluster, tiny_data, state_weight, return_weight
):
    """Compares with one process on the joined batch; the shards hold unequal numbers of steps."""

    config = tiny_config(tiny_data[0], **NO_DROPOUT).training(grad_clip=None, lr=1.0)
    config.training(state_loss_weight=state_weight, return_loss_weight=return_weight)
    config.offline_data(dataset_num_iters_per_learner=1).learners(num_learners=2)
    algo = config.build_algo()
    algo.learner_group.foreach_learner(use_sgd)
    network = algo.get_module().network
    before = weights(algo)
    (supply, *_rest) = algo.offline_data.sample(8)
    batches = [supply.sampler(learner, 2).sample(0).columns() for learner in (0, 1)]
    valid = [int(b["loss_mask"].sum()) for b in batches]
    assert valid[0] != valid[1]
    joined = {k: torch.as_tensor(np.concatenate([b[k] for b in batches])) for k in batches[0]}
    result = learner_results(algo)
    after = weights(algo)
    algo.stop()
    out = network.train().requires_grad_(True)(
        joined["obs"], joined["actions"], joined["returns_to_go"], joined["t"], joined["loss_mask"]
    )
    errors = (out.action_preds - joined["actions"]).square().mean(-1)
    mask = joined["loss_mask"]
    loss = errors[mask].mean()
    pairs = mask[:, :-1] & mask[:, 1:]
    if state_weight:
        gap = (out.state_preds[:, :-1] - joined["obs"][:, 1:]) / network.observation_std
        loss = loss + state_weight * gap.square().mean(-1)[pairs].mean()
        gap = (out.return_preds[:, :-1] - joined["returns_to_go"][:, 1:]) / network.return_scale
        loss = loss + return_weight * gap.square()[pairs].mean()
    loss.backward()
    assert result["num_steps_trained"] == sum(valid)
    for name, parameter in network.named_parameters():
        gradient = 0 if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            before[name] - after[name], torch.zeros_like(parameter) + gradient, atol=1e-6, rtol=1e-4
        )


def test_bf16_trains_to_nearly_the_same_loss(cluster, tiny_data):
    losses = {}
    for precision in ("fp32", "bf16"):
        algo = tiny_config(tiny_data[0], **NO_DROPOUT).training(precision=precision).build_algo()
        losses[precision] = learner_results(algo, 3)["action_loss"]
        dtype = next(algo.get_module().network.parameters()).dtype
        algo.stop()
        assert dtype == torch.float32
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.semantics(20)
def test_data_with_episodes_longer_than_max_ep_len_is_refused_at_setup(cluster, tiny_data):
    with pytest.raises(ValueError, match=r"episode 1: it has 29 steps, max_ep_len is 28; raise"):
        tiny_config(tiny_data[0], max_ep_len=28).build_algo()
    tiny_config(tiny_data[0], max_ep_len=29).build_algo().stop()


def test_data_that_does_not_fit_the_environment_is_refused_at_setup(cluster, tiny_data):
    config = cartpole_config(data=tiny_data[0])
    with pytest.raises(ValueError, match=r"observations have the shape \(3,\).*\(4,\)"):
        config.build_algo()


def test_targets_and_return_scale_are_derived_from_the_data_by_default(cluster):
    config = cartpole_config().evaluation(target_returns=None)
    algo = config.build_algo()
    summary = algo.offline_data.summary
    assert algo.target_returns == [summary.return_max, summary.return_median]
    assert weights(algo)["return_scale"] == summary.return_max
    assert (summary.num_episodes, summary.observation_shape) == (300, (4,))
    algo.stop()


def test_a_return_scale_next_to_zero_is_refused_or_warned_of(cluster, tiny_data, caplog):
    config = tiny_config(tiny_data[0]).training(return_scale=1.2e-38)
    with pytest.raises(ValueError, match=r"return_scale=1.2e-38\) is too small: the data"):
        config.build_algo()
    with caplog.at_level("WARNING", "rllib_dt"):
        tiny_config(tiny_data[0]).training(return_scale=1e-5).build_algo().stop()
    assert "return_scale=1e-05: the network sees returns-to-go of up to" in caplog.text


def test_top_fraction_keeps_only_the_best_episodes(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).offline_data(top_fraction=0.5).build_algo()
    best = max(np.sum(e["rewards"]) for e in tiny_data[1])
    assert algo.offline_data.summary.return_max == pytest.approx(best)
    assert algo.offline_data.summary.num_steps <= 71 / 2
    algo.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.training(return_scale=0), "return_scale=0 must be positive"),
        (lambda c: c.training(return_scale=math.inf), "return_scale=inf must be positive"),
        (
            lambda c: c.training(warmup_steps=-1),
            "warmup_steps=-1 must be a whole number",
        ),
        (lambda c: c.training(precision="fp8"), "precision='fp8' is not one of"),
        (lambda c: c.training(gamma=0.0), r"gamma=0.0 must be in \(0, 1\]"),
        (lambda c: c.training(lr=[[5, 0.1], [10, 0.2]]), "must be numbers that rise from 0"),
        (lambda c: c.evaluation(target_returns=[1.0, math.nan]), "target_returns=nan must be"),
        (lambda c: c.evaluation(target_returns=[]), "target_returns is empty"),
        (lambda c: c.evaluation(target_returns=["3"]), "target_returns='3' must be"),
        (lambda c: c.evaluation(score_reference=(1, 1)), "two different numbers"),
        (lambda c: c.evaluation(evaluation_duration_unit="timesteps"), "cut episode"),
        (lambda c: c.offline_data(incomplete="maybe"), "incomplete='maybe' is not one of"),
        (lambda c: c.offline_data(top_fraction=1.5), r"top_fraction=1.5 must be in \(0, 1\]"),
        (lambda c: c.offline_data(input_=42), r"input_=…\) must be a path"),
        (
            lambda c: c.offline_data(dataset_num_iters_per_learner=None),
            "dataset_num_iters_per_learner=None must be a whole number",
        ),
        (lambda c: setattr(c, "normalize_actions", True), "would scale actions twice"),
        (lambda c: c.env_runners(gym_env_vectorize_mode="vector_entry_point"), "'sync' or 'async'"),
        (lambda c: c.rl_module(model_config={"n_heads": 3}), "did you mean 'n_head'"),
        (lambda c: c.rl_module(model_config={"n_head": 3}), "not divisible by n_head=3"),
        (
            lambda c: c.environment(observation_space=Text(3)),
            "Text spaces are not supported as observations",
        ),
    ],
)
def test_invalid_settings_are_refused_before_training(tiny_data, change, message):
    config = tiny_config(tiny_data[0])
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_relative_paths_resolve_against_the_current_directory(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config("tiny")
    assert config.input_ == str(tmp_path / "tiny")
    assert DTConfig().offline_data(input_=["a/*.json", "s3://b/c"]).input_ == [
        str(tmp_path / "a" / "*.json"),
        "s3://b/c",
    ]
    assert DTConfig().offline_data(input_=tmp_path / "c").input_ == str(tmp_path / "c")
    config.rl_module(model_config={"pretrained": "hf"})
    assert config._model_config["pretrained"] == str(tmp_path / "hf")


def test_a_config_without_environment_spaces_and_data_is_refused(tiny_data):
    with pytest.raises(ValueError, match="neither an environment nor spaces are given"):
        DTConfig().validate()
    DTConfig().offline_data(input_=tiny_data[0]).validate()  # the data describes its spaces


def test_the_learners_share_one_copy_of_the_data(algo):
    (supply,) = algo.offline_data.sample(8)
    pool = ray.get(supply.pool)
    assert not pool.columns["obs"].flags.owndata
    assert not pool.columns["obs"].flags.writeable
    assert len(pool) == 71
    # it is sent to each learner at each `train()`, so it must be small
    assert len(ray.cloudpickle.dumps(supply)) < 2000


class Counted(Lengths):
    """Counts how often it is created."""

    made = 0

    def __init__(self, config=None):
        type(self).made += 1


def test_validating_creates_no_environment_and_building_one_for_the_spaces(cluster, tmp_path):
    Counted.made = 0
    env = Counted()
    write_episodes(
        make_episodes([7, 5], action_space=env.action_space),
        tmp_path / "d",
        env.observation_space,
        env.action_space,
    )
    Counted.made = 0
    config = tiny_config(str(tmp_path / "d")).environment(
        Counted, observation_space=None, action_space=None
    )
    config.observation_space = config.action_space = None
    config.validate()
    assert Counted.made == 0
    algo = config.build_algo()
    assert algo.config.observation_space == Lengths.observation_space
    assert algo.config.action_space == Lengths.action_space
    assert Counted.made == 1 + 1  # for the spaces, and in the evaluation's own runner
    algo.stop()


class Speaking(Lengths):
    observation_space = Text(3)


def test_unsupported_spaces_of_an_environment_are_refused_before_anything_is_read(cluster):
    config = tiny_config("nowhere").environment(Speaking)
    config.observation_space = config.action_space = None
    with pytest.raises(ValueError, match="Text spaces are not supported as observations"):
        config.build_algo()


def test_rllibs_own_checks_of_offline_settings_hold_with_an_environment(tiny_data):
    config = cartpole_config(tiny_data[0]).offline_data(prelearner_class=int)
    with pytest.raises(ValueError, match="prelearner_class"):
        config.validate()


def test_the_folder_of_pretrained_weights_can_be_searched_over():
    from ray import tune

    for space in (tune.grid_search(["a", "b"]), tune.choice(["a", "b"])):
        config = DTConfig().rl_module(model_config={"pretrained": space})
        assert config._model_config["pretrained"] == space
