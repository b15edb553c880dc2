"""Parity of our network with transformers' DecisionTransformerModel at equal random weights."""

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rllib_dt.huggingface import load_pretrained, save_pretrained
from rllib_dt.network.cache import GrowingCache
from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.network.transformer import CausalTransformer, causal_mask
from tests.training import mean_loss

transformers = pytest.importorskip("transformers", reason="the huggingface extra")

B, K, S, A = 3, 5, 7, 2
CASES = [
    dict(hidden_size=24, n_layer=1, n_head=1),
    dict(hidden_size=26, n_layer=3, n_head=2, activation_function="gelu_new", n_inner=31),
    dict(hidden_size=33, n_layer=2, n_head=3, activation_function="gelu", action_tanh=False),
    dict(hidden_size=20, n_layer=2, n_head=5, activation_function="silu", scale_attn_weights=False),
    dict(hidden_size=22, n_layer=4, n_head=2, scale_attn_by_inverse_layer_idx=True),
    dict(hidden_size=22, n_layer=2, n_head=1, activation_function="tanh",
         scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
]  # fmt: skip


def their_model(settings, seed=0):
    torch.manual_seed(seed)
    config = transformers.DecisionTransformerConfig(
        state_dim=S, act_dim=A, max_ep_len=37, n_positions=41, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, attn_implementation="eager", **settings,
    )  # fmt: skip
    model = transformers.DecisionTransformerModel(config).eval()
    with torch.no_grad():  # moves biases and norms away from their neutral initial values
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(seed=1, lengths=(5, 2, 4)):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(K)[None] >= K - torch.tensor(lengths)[:, None]
    return dict(
        observations=torch.randn(B, K, S, generator=generator),
        actions=torch.rand(B, K, A, generator=generator) * 2 - 1,
        returns_to_go=torch.randn(B, K, 1, generator=generator),
        timesteps=torch.where(mask, torch.arange(K)[None] + 11, 0),
        mask=mask,
    )


def run_theirs(model, data, **kwargs):
    return model(
        states=data["observations"],
        actions=data["actions"],
        rewards=torch.zeros(B, K, 1),
        returns_to_go=data["returns_to_go"],
        timesteps=data["timesteps"],
        attention_mask=data["mask"].long(),
        **kwargs,
    )


@pytest.fixture(params=range(len(CASES)))
def pair(request, tmp_path):
    theirs = their_model(CASES[request.param], seed=request.param)
    theirs.save_pretrained(tmp_path)
    return load_pretrained(tmp_path), theirs


@pytest.mark.semantics(10, 11, 31)
def test_predictions_equal_theirs(pair):
    ours, theirs = pair
    data = batch()
    got, want = ours(**data), run_theirs(theirs, data)
    for name in ("action_preds", "state_preds", "return_preds"):
        torch.testing.assert_close(
            getattr(got, name)[data["mask"]],
            getattr(want, name)[data["mask"]],
            atol=1e-5, rtol=1e-5,
        )  # fmt: skip


def test_gradients_equal_theirs(pair, tmp_path):
    ours, theirs = pair
    data = batch()
    for model, out in ((ours, ours(**data)), (theirs, run_theirs(theirs, data))):
        total = sum(
            getattr(out, name)[data["mask"]].square().sum()
            for name in ("action_preds", "state_preds", "return_preds")
        )
        model.zero_grad()
        total.backward()
    # export the gradients as if they were weights, so that names and transposes are shared
    for parameter in ours.parameters():
        parameter.data = parameter.grad
    save_pretrained(ours, tmp_path / "gradients")
    from safetensors.torch import load_file

    ours_by_name = load_file(tmp_path / "gradients" / "model.safetensors")
    compared = 0
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:
            assert name == "encoder.wte.weight"
            continue
        scale = max(1.0, parameter.grad.abs().max().item())
        torch.testing.assert_close(
            ours_by_name[name] / scale, parameter.grad / scale, atol=1e-5, rtol=1e-5
        )
        compared += 1
    assert compared == len(list(theirs.parameters())) - 1


def test_hidden_states_and_attentions_equal_theirs(pair):
    ours, theirs = pair
    data = batch()
    want = run_theirs(theirs, data, output_hidden_states=True, output_attentions=True)
    got = ours(**data, output_hidden_states=True, output_attentions=True)
    tokens = data["mask"].repeat_interleave(3, dim=1)
    assert len(got.hidden_states) == len(want.hidden_states)
    for mine, other in zip(got.hidden_states, want.hidden_states, strict=True):
        torch.testing.assert_close(mine[tokens], other[tokens], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        got.last_hidden_state[tokens], want.last_hidden_state[tokens], atol=1e-5, rtol=1e-5
    )
    assert len(got.attentions) == len(want.attentions)
    for mine, other in zip(got.attentions, want.attentions, strict=True):
        torch.testing.assert_close(
            mine.transpose(1, 2)[tokens], other.transpose(1, 2)[tokens], atol=1e-5, rtol=1e-5
        )


def test_skipping_tokens_in_the_last_block_does_not_change_the_actions(pair):
    ours, _ = pair
    data = batch()
    full = ours(**data).action_preds
    part = ours(**data, only_actions=True).action_preds
    last = ours(**data, last_only=True).action_preds
    torch.testing.assert_close(part[data["mask"]], full[data["mask"]], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(last, full[:, -1:], atol=1e-6, rtol=1e-6)


def test_skipping_tokens_in_the_last_block_does_not_change_the_gradient(pair):
    """The gradient of the action loss, with all tokens or only state tokens in the last block."""
    ours, _ = pair
    data = batch()
    gradients = []
    for only_actions in (False, True):
        ours.zero_grad()
        mean_loss(ours, ours(**data, only_actions=only_actions), data).backward()
        gradients.append({n: p.grad for n, p in ours.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, want in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], want, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_backbone_equals_theirs_cached_and_uncached(case):
    theirs = their_model(CASES[case]).encoder
    config = DTModelConfig.from_dict(
        CASES[case] | dict(n_positions=41, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    )
    ours = CausalTransformer(config).eval()
    state = {}
    for name, value in theirs.state_dict().items():
        transposed = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        state[name.replace("wte.weight", "wte")] = value.T if transposed else value
    ours.load_state_dict(state)
    x = torch.randn(B, 11, config.hidden_size)
    mask = torch.ones(B, 11, dtype=torch.long)
    mask[1, :3] = 0
    positions = torch.arange(11)[None]
    want = theirs(inputs_embeds=x, attention_mask=mask).last_hidden_state
    got = ours(x, causal_mask(mask.bool(), 11), positions).last_hidden_state
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], atol=1e-5, rtol=1e-5)
    ours_cache, theirs_cache = GrowingCache(), None
    for start, stop in ((0, 4), (4, 5), (5, 11)):
        new = causal_mask(mask[:, :stop].bool(), stop - start)
        a = ours(x[:, start:stop], new, positions[:, start:stop], ours_cache)
        b = theirs(
            inputs_embeds=x[:, start:stop],
            attention_mask=mask[:, :stop],
            past_key_values=theirs_cache,
            use_cache=True,
        )
        theirs_cache = b.past_key_values
        part = mask[:, start:stop].bool()
        torch.testing.assert_close(
            a.last_hidden_state[part], b.last_hidden_state[part], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            a.last_hidden_state[part], got[:, start:stop][part], atol=1e-5, rtol=1e-5
        )


def test_a_round_trip_of_their_weights_is_bitwise_exact(pair, tmp_path):
    ours, theirs = pair
    save_pretrained(ours, tmp_path / "again")
    again = transformers.DecisionTransformerModel.from_pretrained(tmp_path / "again")
    want = theirs.state_dict()
    got = again.state_dict()
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.semantics(28)
@pytest.mark.parametrize(
    "action_space",
    [Box(-1.0, 1.0, (A,)), Box(-2.5, 0.5, (A,)), Discrete(4, start=-3)],
    ids=["unit", "bounds", "discrete"],
)
def test_a_round_trip_of_our_network_keeps_weights_spaces_and_normalization(action_space, tmp_path):
    torch.manual_seed(3)
    config = DTModelConfig(hidden_size=22, n_layer=2, n_head=2, max_ep_len=37, context_length=13)
    ours = DecisionTransformer(config, Box(-float("inf"), 7.0, (S,)), action_space).eval()
    ours.set_normalization(torch.randn(S), torch.rand(S) + 0.1, 321.0)
    save_pretrained(ours, tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == config
    assert (again.observation_space, again.action_space) == (
        ours.observation_space,
        ours.action_space,
    )
    assert again.state_dict().keys() == ours.state_dict().keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert transformers.DecisionTransformerModel.from_pretrained(tmp_path).config.state_dim == S


@pytest.mark.semantics(28)
def test_a_folder_without_statistics_normalizes_with_the_identity(pair):
    ours, _ = pair
    assert torch.equal(ours.observation_mean, torch.zeros(S))
    assert torch.equal(ours.observation_std, torch.ones(S))
    assert ours.return_scale == 1.0


@pytest.mark.semantics(31)
def test_weights_without_position_embedding_load(pair, tmp_path):
    from safetensors.torch import load_file, save_file

    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "kzl")
    path = tmp_path / "kzl" / "model.safetensors"
    weights = load_file(path)
    for name in ("encoder.wpe.weight", "encoder.wte.weight"):
        del weights[name]
    save_file(weights, path)
    without = load_pretrained(tmp_path / "kzl")
    assert without.config.n_positions is None
    with torch.no_grad():
        ours.backbone.wpe.weight[0] = 0
    data = batch()
    torch.testing.assert_close(ours(**data).action_preds, without(**data).action_preds)


def test_weights_that_do_not_fit_are_refused(pair, tmp_path):
    import json

    _, theirs = pair
    theirs.save_pretrained(tmp_path / "bad")
    path = tmp_path / "bad" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_ep_len": 38}))
    with pytest.raises(ValueError, match=r"max_ep_len is 38, and the weights have 37"):
        load_pretrained(tmp_path / "bad")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="model_type is 'gpt2'"):
        load_pretrained(tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_pretrained(tmp_path / "nowhere")
