"""The network: padding, causality, predictions, action heads, loss and initialization."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete

from rllib_dt.episodes.windows import Window
from rllib_dt.network.cache import GrowingCache
from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.network.transformer import CausalTransformer, causal_mask
from rllib_dt.spaces.heads import action_head
from rllib_dt.spaces.leaves import UnsupportedSpaceError
from tests.training import mean_loss

B, K, S, A = 3, 7, 5, 2
UNBOUNDED = Box(-np.inf, np.inf, (S,))
CONFIG = DTModelConfig(
    context_length=K, hidden_size=26, n_layer=3, n_head=2, max_ep_len=97,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip


def network(action_space=None, config=CONFIG, seed=0):
    torch.manual_seed(seed)
    space = action_space or Box(-1.0, 1.0, (A,))
    net = DecisionTransformer(config, UNBOUNDED, space).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    net.set_normalization(torch.randn(S), torch.rand(S) + 0.5, 13.0)
    return net


def batch(lengths=(7, 2, 4), seed=1, action_space=None):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(K)[None] >= K - torch.tensor(lengths)[:, None]
    if isinstance(action_space, Discrete):
        actions = torch.randint(0, int(action_space.n), (B, K), generator=g)
        actions = actions + int(action_space.start)
    else:
        actions = torch.rand(B, K, A, generator=g) * 2 - 1
    return dict(
        observations=torch.randn(B, K, S, generator=g),
        actions=actions,
        returns_to_go=torch.randn(B, K, 1, generator=g) * 20,
        timesteps=torch.where(mask, torch.arange(K)[None] + 3, 0),
        mask=mask,
    )


def with_padding(data, value):
    out = dict(data)
    for name in ("observations", "actions", "returns_to_go"):
        filled = data[name].clone()
        filled[~data["mask"]] = value
        out[name] = filled
    return out


@pytest.mark.semantics(5, 8)
@pytest.mark.parametrize("value", [0.0, -10.0, 1e3])
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_neither_predictions_nor_loss(value, training):
    net = network().train(training)
    plain = batch()
    filled = with_padding(plain, value)
    filled["timesteps"] = torch.where(plain["mask"], plain["timesteps"], 96)
    a, b = net(**plain), net(**filled)
    for name in ("action_preds", "state_preds", "return_preds"):
        torch.testing.assert_close(
            getattr(a, name)[plain["mask"]], getattr(b, name)[plain["mask"]], atol=1e-6, rtol=1e-6
        )
    losses = [mean_loss(net, out, data) for out, data in ((a, plain), (b, filled))]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-6)


@pytest.mark.semantics(6, 8, 22)
def test_left_padded_right_padded_and_unpadded_segments_agree():
    net = network()
    length = 4
    data = {k: v[:1] for k, v in batch(lengths=(length, 1, 1)).items()}
    left = net(**data).action_preds[:, K - length :]
    rolled = {k: v.roll(length - K, dims=1) for k, v in data.items()}
    right = net(**rolled).action_preds[:, :length]
    bare = {k: v[:, K - length :] for k, v in data.items() if k != "mask"}
    alone = net(**bare).action_preds
    torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(left, alone, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(net.act(Window(**data)), alone[:, -1], atol=1e-6, rtol=1e-6)


@pytest.mark.semantics(7)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [False, True])
def test_a_row_without_valid_positions_yields_no_nan(dtype, weights):
    net = network()
    data = batch(lengths=(0, 7, 0))
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        out = net(**data, output_attentions=weights)
        loss = mean_loss(net, out, data)
    loss.backward()
    assert out.action_preds.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    empty = batch(lengths=(0, 0, 0))
    nothing = mean_loss(net, net(**empty), empty)
    assert nothing == 0.0


@pytest.mark.semantics(10)
@pytest.mark.parametrize("name", ["observations", "actions", "returns_to_go", "timesteps"])
def test_a_prediction_depends_only_on_the_tokens_before_it(name):
    """action_preds[t] depends on R and s up to step t, and on a up to step t-1."""
    net = network()
    data = batch(lengths=(K, K, K))
    base = net(**data).action_preds
    for t in range(K):
        changed = dict(data)
        value = data[name].clone()
        value[:, t] = value[:, t] + (1 if name == "timesteps" else 0.37)
        changed[name] = value
        moved = (net(**changed).action_preds - base).abs().amax(dim=(0, 2)) > 1e-6
        first = t + 1 if name == "actions" else t
        assert moved.tolist() == [s >= first for s in range(K)]


@pytest.mark.semantics(11)
def test_state_and_return_heads_read_the_action_token():
    net = network()
    data = batch(lengths=(K, K, K))
    base = net(**data)
    changed = dict(data, actions=data["actions"].clone())
    changed["actions"][:, -1] += 0.5
    out = net(**changed)
    assert (out.state_preds[:, -1] != base.state_preds[:, -1]).any()
    assert (out.return_preds[:, -1] != base.return_preds[:, -1]).any()
    torch.testing.assert_close(out.state_preds[:, :-1], base.state_preds[:, :-1])
    assert out.state_preds.shape == (B, K, S)
    assert out.return_preds.shape == (B, K, 1)


@pytest.mark.semantics(12)
def test_the_loss_adds_up_valid_action_elements_only():
    head = action_head(Box(-1.0, 1.0, (2,)), tanh=True)
    outputs = torch.tensor([[[9.0, 9.0], [0.5, 0.0]], [[0.1, 0.2], [1.0, -1.0]]])
    actions = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.1, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[False, True], [True, True]])
    # squares of the valid elements: .25, 0, 0, .04, 1, 1; six of them, two per step
    torch.testing.assert_close(head.loss_sum(outputs, actions, mask), torch.tensor(2.29 / 2))


@pytest.mark.semantics(14)
@pytest.mark.parametrize("start", [0, -4, 11])
def test_discrete_actions_round_trip_with_any_start(start):
    space = Discrete(3, start=start)
    head = action_head(space, tanh=True)
    actions = torch.arange(3) + start
    assert torch.equal(head.features(actions), torch.eye(3))
    assert torch.equal(head.act(torch.eye(3) * 5), actions)
    assert set(head.act(torch.zeros(200, 3), temperature=1.0).tolist()) == set(actions.tolist())
    logits = torch.tensor([[[1.0, 2.0, 0.0]]])
    want = -torch.log_softmax(logits[0, 0], 0)[1]
    got = head.losses(logits, actions[1].view(1, 1))
    torch.testing.assert_close(got, want.view(1, 1))
    net = network(space)
    out = net.act(Window(**batch(action_space=space)))
    assert out.shape == (B,)
    assert all(space.contains(int(a)) for a in out)


@pytest.mark.semantics(14)
def test_box_bounds_are_mapped_to_the_heads_range_and_back():
    space = Box(np.float32([-2.0, 5.0]), np.float32([4.0, 5.5]))
    head = action_head(space, tanh=True)
    ends = torch.stack([torch.as_tensor(space.low), torch.as_tensor(space.high)])
    torch.testing.assert_close(head.features(ends), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    torch.testing.assert_close(head.decode(head.features(ends)), ends)
    data = batch()
    data["actions"] = head.decode(data["actions"])
    preds = network(space)(**data).action_preds
    assert (preds >= torch.as_tensor(space.low)).all()
    assert (preds <= torch.as_tensor(space.high)).all()
    # an error of half a range costs the same in every component
    costs = [head.losses(e, head.decode(torch.zeros(2))) for e in torch.eye(2)]
    torch.testing.assert_close(costs[0], costs[1])


@pytest.mark.semantics(14)
def test_actions_are_within_the_bounds_even_without_a_tanh():
    space = Box(np.float32([-0.1, 0.3]), np.float32([0.2, 0.7]))
    config = dataclasses.replace(CONFIG, action_tanh=False)
    net = network(space, config)
    actions = net.act(Window(**batch()))
    assert (net(**batch()).action_preds[:, -1] != actions).any()
    assert all(space.contains(action) for action in actions.numpy())
    assert not [name for name in net.state_dict() if name.endswith(("low", "high"))]


@pytest.mark.semantics(14)
@pytest.mark.parametrize(
    "space",
    [
        Box(-1.0, 1.0, (2, 0)),
        Box(0, 3, (2,), np.int64),
        spaces.Sequence(Discrete(2)),
        spaces.Graph(Box(-1, 1, (2,)), Discrete(2)),
        spaces.Text(3),
    ],
    ids=lambda s: str(s)[:30],
)
def test_unsupported_action_spaces_are_refused_by_name(space):
    with pytest.raises(UnsupportedSpaceError, match=rf"{type(space).__name__} spaces.*actions"):
        DecisionTransformer(CONFIG, UNBOUNDED, space)


@pytest.mark.parametrize(
    "space", [Box(-1.0, 1.0, (0,)), spaces.Text(3), spaces.Sequence(UNBOUNDED)]
)
def test_unsupported_observation_spaces_are_refused_by_name(space):
    with pytest.raises(UnsupportedSpaceError, match=f"{type(space).__name__} spaces.*observations"):
        DecisionTransformer(CONFIG, space, Box(-1.0, 1.0, (A,)))


@pytest.mark.semantics(20)
def test_timesteps_beyond_the_table_use_its_last_row_in_training_and_evaluation():
    net = network()
    data = batch(lengths=(K, K, K))
    data["timesteps"] = data["timesteps"] + 96 - 5
    clamped = dict(data, timesteps=data["timesteps"].clamp(max=96))
    assert (data["timesteps"] > 96).any()
    for mode in (True, False):
        net.train(mode)
        torch.testing.assert_close(net(**data).action_preds, net(**clamped).action_preds)


@pytest.mark.semantics(4, 28)
def test_the_network_normalizes_and_its_weights_include_the_statistics():
    net = network()
    data = batch()
    bare = network()
    bare.set_normalization(torch.zeros(S), torch.ones(S), 1.0)
    by_hand = dict(
        data,
        observations=(data["observations"] - net.observation_mean) / net.observation_std,
        returns_to_go=data["returns_to_go"] / 13.0,
    )
    got, want = net(**data), bare(**by_hand)
    torch.testing.assert_close(got.action_preds, want.action_preds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        got.state_preds, want.state_preds * net.observation_std + net.observation_mean
    )
    torch.testing.assert_close(got.return_preds, want.return_preds * 13.0)
    bare.load_state_dict(net.state_dict())
    assert torch.equal(bare(**data).action_preds, got.action_preds)


@pytest.mark.semantics(25)
def test_dropout_is_active_only_in_training():
    config = DTModelConfig(context_length=K, hidden_size=26, n_head=2, max_ep_len=97)
    net = network(config=config)
    data = batch()
    assert torch.equal(net(**data).action_preds, net(**data).action_preds)
    net.train()
    assert not torch.equal(net(**data).action_preds, net(**data).action_preds)


def gradient_nodes(loss):
    """Returns the names of the nodes that a backward pass goes through."""
    found, pending = set(), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(inner for inner, _ in node.next_functions)
    return {node.name() for node in found}


@pytest.mark.parametrize("attention", ["context", "window"])
@pytest.mark.parametrize("only_actions", [True, False])
def test_no_operation_in_place_copies_a_gradient(attention, only_actions):
    # autograd wraps what changes a view in place in CopySlices, which copies all of its gradient
    net = network(config=dataclasses.replace(CONFIG, attention=attention, resid_pdrop=0.1))
    outputs = net.train()(**batch(), only_actions=only_actions).action_outputs
    names = gradient_nodes(outputs.sum())
    assert "ReluBackward0" in names
    assert not {name for name in names if "CopySlices" in name}


@pytest.mark.semantics(26)
def test_a_cache_is_exact_while_the_window_grows_and_wrong_once_it_slides():
    torch.manual_seed(0)
    backbone = CausalTransformer(CONFIG).eval()
    x = torch.randn(1, 9, CONFIG.hidden_size)

    def run(tokens, new, cache=None):
        real = torch.ones(1, tokens, dtype=torch.bool)
        return backbone(new, causal_mask(real, new.shape[1]), cache=cache).last_hidden_state

    whole = run(9, x)
    cache = GrowingCache()
    parts = [run(t + 1, x[:, t : t + 1], cache) for t in range(9)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-6, rtol=1e-6)
    slid = run(6, x[:, 3:])[:, -1]
    evicted = GrowingCache()
    run(8, x[:, :8], evicted)
    evicted._layers = {i: (k[:, :, 3:], v[:, :, 3:]) for i, (k, v) in evicted._layers.items()}
    assert (slid - run(6, x[:, 8:], evicted)[:, -1]).abs().max() > 1e-3


def test_invalid_network_settings_are_refused():
    with pytest.raises(ValueError, match="hidden_size=10 is not divisible by n_head=3"):
        DTModelConfig(hidden_size=10, n_head=3).validate()
    with pytest.raises(ValueError, match="did you mean 'hidden_size'"):
        DTModelConfig.from_dict({"hidden_sise": 3})
    with pytest.raises(ValueError, match="activation_function='selu' is not one of"):
        DTModelConfig(activation_function="selu").validate()
    with pytest.raises(ValueError, match="context_length=0 must be"):
        DTModelConfig(context_length=0).validate()
    with pytest.raises(ValueError, match="attn_pdrop"):
        DTModelConfig(attn_pdrop=1.0).validate()


def test_equal_seeds_yield_equal_initial_weights_of_the_expected_scale():
    nets = [DecisionTransformer(CONFIG, UNBOUNDED, Discrete(4)) for _ in range(2)]
    for net in nets:
        torch.manual_seed(5)
        net._initialize()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert nets[0].embed_timestep.weight.std().item() == pytest.approx(0.02, rel=0.1)
    projection = nets[0].backbone.h[0].mlp.c_proj.weight.std().item()
    assert projection == pytest.approx(0.02 / np.sqrt(2 * 3), rel=0.1)
    assert nets[0].embed_state.bias.abs().max() == 0
