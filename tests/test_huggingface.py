"""Hugging Face's page: its config, backbone, model, outputs and example, without `transformers`."""

import copy
import json
import math

import pytest
import torch
from torch.nn import functional as F

from rllib_dt.huggingface import (
    DecisionTransformerConfig,
    DecisionTransformerGPT2Model,
    DecisionTransformerModel,
    PastKeyValues,
)
from rllib_dt.network.activations import activation
from rllib_dt.network.config import ACTIVATIONS

B, K, S, A, D, H = 2, 5, 7, 3, 22, 2
L = 3 * K
SIZES = dict(state_dim=S, act_dim=A, hidden_size=D, n_layer=2, n_head=H, max_ep_len=37)


def model(seed=0, **settings):
    torch.manual_seed(seed)
    found = DecisionTransformerModel(DecisionTransformerConfig(**(SIZES | settings))).eval()
    with torch.no_grad():  # away from the neutral initial values of norms and biases
        for parameter in found.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return found


def window(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    return dict(
        states=draw(B, K, S),
        actions=draw(B, K, A),
        rewards=draw(B, K, 1),
        returns_to_go=draw(B, K, 1),
        timesteps=torch.arange(K)[None] + torch.tensor([[3], [11]]),
    )


def test_the_pages_example_runs_with_another_import_line(tmp_path):
    model(state_dim=11).save_pretrained(tmp_path)
    policy = DecisionTransformerModel.from_pretrained(tmp_path)
    policy = policy.to("cpu")
    policy.eval()
    states = torch.zeros(11).reshape(1, 1, 11).to(device=policy.device, dtype=torch.float32)
    actions = torch.zeros((1, 1, A), device=policy.device, dtype=torch.float32)
    rewards = torch.zeros(1, 1, device=policy.device, dtype=torch.float32)
    target_return = torch.tensor(3.6, dtype=torch.float32).reshape(1, 1)
    timesteps = torch.tensor(0, device=policy.device, dtype=torch.long).reshape(1, 1)
    attention_mask = torch.zeros(1, 1, device=policy.device, dtype=torch.float32)
    with torch.no_grad():
        state_preds, action_preds, return_preds = policy(
            states=states,
            actions=actions,
            rewards=rewards,
            returns_to_go=target_return,
            timesteps=timesteps,
            attention_mask=attention_mask,
            return_dict=False,
        )
    assert state_preds.shape == (1, 1, 11)
    assert action_preds.shape == (1, 1, A)
    assert return_preds.shape == (1, 1, 1)
    assert action_preds.abs().max() <= 1


def test_a_wholly_padded_window_attends_alike_to_all_tokens_up_to_each(caplog):
    """As transformers 4.27 answers: its two masks add up to the same number for all of them."""
    net = model()
    mask = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 1, 1]])
    out = net(**window(), attention_mask=mask, output_attentions=True)
    alike = torch.ones(L, L).tril() / torch.arange(1, L + 1)[:, None]
    for weights in out.attentions:
        torch.testing.assert_close(weights[0], alike.expand(H, L, L), atol=1e-6, rtol=0)
        # a padded step before the real ones sees padding alone, and real steps see none of it
        torch.testing.assert_close(weights[1, :, :6], alike[:6].expand(H, 6, L), atol=1e-6, rtol=0)
        assert (weights[1, :, 6:, :6] == 0).all()
    real = net(**window())
    alone = net(**{name: value[1:, 2:] for name, value in window().items()})
    torch.testing.assert_close(out.action_preds[1, 2:], alone.action_preds[0])
    assert not torch.allclose(out.action_preds[1], real.action_preds[1])


def test_outputs_are_objects_mappings_and_tuples():
    net = model()
    out = net(**window(), output_hidden_states=True)
    names = ["state_preds", "action_preds", "return_preds", "hidden_states", "last_hidden_state"]
    assert list(out) == list(out.keys()) == names
    assert out.attentions is None
    assert "attentions" not in out
    assert out[1] is out["action_preds"] is out.action_preds is out.to_tuple()[1]
    assert len(out.hidden_states) == 3
    assert out.hidden_states[-1] is out.last_hidden_state
    with pytest.raises(AttributeError, match="has no 'actions'; it has"):
        _ = out.actions
    assert len(net(**window(), return_dict=False)) == 3


def test_the_configs_defaults_decide_what_calls_return():
    net = model(output_attentions=True, output_hidden_states=True, return_dict=False)
    assert isinstance(net(**window()), tuple)
    out = net(**window(), return_dict=True)
    assert len(out.attentions) == 2
    assert len(out.hidden_states) == 3
    plain = net(**window(), return_dict=True, output_attentions=False, output_hidden_states=False)
    assert plain.attentions is None
    assert plain.hidden_states is None


def test_settings_have_their_names_defaults_and_synonyms(tmp_path):
    config = DecisionTransformerConfig()
    assert (config.state_dim, config.act_dim, config.hidden_size) == (17, 4, 128)
    assert (config.max_ep_len, config.vocab_size, config.n_positions) == (4096, 1, 1024)
    assert (config.bos_token_id, config.eos_token_id) == (50256, 50256)
    assert config.use_cache
    assert config.use_return_dict
    assert config.num_hidden_layers == config.n_layer == 3
    config.num_attention_heads = 4
    assert config.n_head == 4
    config.update({"mine": [1, 2], "max_position_embeddings": 9})
    config.save_pretrained(tmp_path)
    again = DecisionTransformerConfig.from_pretrained(tmp_path, act_dim=5, num_hidden_layers=2)
    assert (again.mine, again.n_positions, again.act_dim, again.n_layer) == ([1, 2], 9, 5, 2)
    assert again != config
    assert DecisionTransformerConfig.from_dict(config.to_dict()) == config
    assert json.loads(config.to_json_string())["model_type"] == "decision_transformer"
    with pytest.raises(AttributeError, match="no setting 'hidden_sise'"):
        _ = config.hidden_sise
    with pytest.raises(ValueError, match="model_type is 'gpt2'"):
        DecisionTransformerConfig.from_dict({"model_type": "gpt2"})
    with pytest.raises(ValueError, match="add_cross_attention=True is not supported"):
        DecisionTransformerModel(DecisionTransformerConfig(add_cross_attention=True))
    with pytest.raises(FileNotFoundError, match="reads local folders"):
        DecisionTransformerModel.from_pretrained("owner/decision-transformer")


def test_what_only_their_model_reads_survives_a_round_trip(tmp_path):
    kept = dict(vocab_size=13, use_cache=False, bos_token_id=5, eos_token_id=7,
                reorder_and_upcast_attn=True, output_attentions=True)  # fmt: skip
    net = model(**kept)
    net.save_pretrained(tmp_path)
    again = DecisionTransformerModel.from_pretrained(tmp_path)
    assert {name: getattr(again.config, name) for name in kept} == kept
    assert again.encoder.wte.weight.shape == (13, D)
    assert torch.equal(again.encoder.wte.weight, net.encoder.wte.weight)
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_transformers_reads_and_writes_the_same_folders(tmp_path, form):
    transformers = pytest.importorskip("transformers", reason="the huggingface extra")
    net = model(vocab_size=13, activation_function="prelu")
    net.save_pretrained(tmp_path / "ours", safe_serialization=form == "safetensors")
    theirs = transformers.DecisionTransformerModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        for name in ("state_preds", "action_preds", "return_preds"):
            got, want = net(**window())[name], theirs(**window())[name]
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = DecisionTransformerModel.from_pretrained(tmp_path / "theirs")
    assert all(torch.equal(again.state_dict()[name], v) for name, v in net.state_dict().items())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    activations = pytest.importorskip("transformers.activations", reason="huggingface extra")
    theirs, ours = activations.ACT2FN[name].float(), activation(name)
    if isinstance(ours, torch.nn.Module):
        ours.load_state_dict(theirs.state_dict())
    x = torch.linspace(-12, 12, 4001)
    # ours may work in place
    torch.testing.assert_close(ours(x.clone()), theirs(x), atol=1e-5, rtol=1e-5)


def test_there_is_an_activation_for_every_name_of_transformers():
    activations = pytest.importorskip("transformers.activations", reason="huggingface extra")
    assert set(activations.ACT2CLS) <= set(ACTIVATIONS)


# --- the backbone


def backbone(**settings):
    return model(vocab_size=13, n_positions=41, **settings).encoder


def test_the_backbone_is_causal_and_adds_positions_words_and_types():
    net = backbone()
    ids = torch.tensor([[1, 5, 12, 0], [3, 3, 7, 9]])
    kinds = torch.tensor([[0, 1, 0, 1], [2, 2, 2, 2]])
    with torch.no_grad():
        whole = net(input_ids=ids, token_type_ids=kinds)
        embeds = F.embedding(ids, net.wte.weight) + net.wte(kinds)
        given = net(inputs_embeds=embeds, position_ids=torch.arange(4)[None])
        shorter = net(input_ids=ids[:, :3], token_type_ids=kinds[:, :3])
        shifted = net(inputs_embeds=embeds, position_ids=torch.arange(4)[None] + 1)
    torch.testing.assert_close(whole.last_hidden_state, given.last_hidden_state)
    torch.testing.assert_close(whole.last_hidden_state[:, :3], shorter.last_hidden_state)
    assert not torch.allclose(whole.last_hidden_state, shifted.last_hidden_state, atol=1e-3)


@pytest.mark.parametrize("form", ["ours", "tuples"])
def test_the_backbone_goes_on_from_keys_and_values(form):
    net = backbone()
    x = torch.randn(B, 9, D, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(B, 9)
    mask[1, :2] = 0
    with torch.no_grad():
        whole = net(inputs_embeds=x, attention_mask=mask, output_attentions=True)
        first = net(inputs_embeds=x[:, :6], attention_mask=mask[:, :6])
        past = first.past_key_values
        assert isinstance(past, PastKeyValues)
        assert past.get_seq_length() == 6
        assert past[1][0].shape == (B, H, 6, D // H)
        if form == "tuples":
            past = [tuple(layer) for layer in past]
        rest = net(
            inputs_embeds=x[:, 6:],
            past_key_values=past,
            attention_mask=mask,
            output_attentions=True,
        )
    torch.testing.assert_close(rest.last_hidden_state, whole.last_hidden_state[:, 6:])
    torch.testing.assert_close(rest.attentions[0], whole.attentions[0][:, :, 6:])
    assert rest.past_key_values.get_seq_length() == 9
    assert past[0][0].shape[2] == 6  # what was given is left as it was
    assert net(inputs_embeds=x, use_cache=False).past_key_values is None
    assert len(net(inputs_embeds=x, use_cache=False, return_dict=False)) == 1


def test_the_backbone_takes_a_cache_of_transformers():
    transformers = pytest.importorskip("transformers", reason="the huggingface extra")
    net = backbone()
    x = torch.randn(B, 9, D)
    with torch.no_grad():
        whole = net(inputs_embeds=x)
        past = net(inputs_embeds=x[:, :6]).past_key_values
        cache = transformers.DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        rest = net(inputs_embeds=x[:, 6:], past_key_values=cache)
    torch.testing.assert_close(rest.last_hidden_state, whole.last_hidden_state[:, 6:])


@pytest.mark.parametrize("name", ["head_mask", "encoder_hidden_states", "encoder_attention_mask"])
def test_what_the_backbone_lacks_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} is not supported"):
        backbone()(input_ids=torch.zeros(1, 2, dtype=torch.long), **{name: torch.ones(1)})


def test_the_backbone_refuses_unclear_input():
    net, ids = backbone(), torch.zeros(1, 2, dtype=torch.long)
    for given in ({}, dict(input_ids=ids, inputs_embeds=torch.zeros(1, 2, D))):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            net(**given)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 3\), wanted \(1, 2\)"):
        net(input_ids=ids, attention_mask=torch.ones(1, 3))


def test_the_backbone_has_folders_of_its_own(tmp_path):
    whole = model(vocab_size=13)
    whole.save_pretrained(tmp_path / "model")
    part = DecisionTransformerGPT2Model.from_pretrained(tmp_path / "model")
    part.save_pretrained(tmp_path / "part")
    again = DecisionTransformerGPT2Model.from_pretrained(tmp_path / "part")
    ids = torch.tensor([[4, 5, 6]])
    for net in (part, again):
        assert torch.equal(net(input_ids=ids)[0], whole.encoder(input_ids=ids)[0])


# --- dtypes


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_models_load_and_run_in_other_dtypes(tmp_path, dtype):
    kind = getattr(torch, dtype)
    net = model()
    net.save_pretrained(tmp_path)
    other = DecisionTransformerModel.from_pretrained(tmp_path, dtype=dtype)
    assert other.dtype == kind
    with torch.no_grad():
        out, want = other(**window(kind)), net(**window())
    assert out.action_preds.dtype == kind
    tolerance = 1e-5 if dtype == "float64" else 64 * torch.finfo(kind).eps
    torch.testing.assert_close(out.action_preds.float(), want.action_preds, atol=tolerance, rtol=0)
    other.save_pretrained(tmp_path / "again")
    for asked, got in ((None, torch.float32), ("auto", kind)):
        assert DecisionTransformerModel.from_pretrained(
            tmp_path / "again", torch_dtype=asked
        ).dtype == got  # fmt: skip
    with pytest.raises(ValueError, match="dtype='int8' is none of"):
        DecisionTransformerModel.from_pretrained(tmp_path, dtype="int8")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("output_attentions", [False, True])
def test_a_wholly_padded_window_gets_one_answer_in_every_dtype(dtype, output_attentions):
    net, mask = model(initializer_range=0.3), torch.zeros(B, K)
    with torch.no_grad():
        want = net(**window(), attention_mask=mask).action_preds
        half = copy.deepcopy(net).to(getattr(torch, dtype))
        given = window(getattr(torch, dtype))
        options = dict(attention_mask=mask, output_attentions=output_attentions)
        got = half(**given, **options).action_preds
        with torch.autocast("cpu", getattr(torch, dtype)):
            cast = net(**window(), **options).action_preds
    for found in (got, cast):
        torch.testing.assert_close(found.float(), want, atol=0.05, rtol=0)


def test_models_behave_like_theirs_in_small_things(tmp_path):
    net = model(vocab_size=13)
    ids = torch.tensor([[1, 2]])
    assert torch.equal(net.encoder.wte(ids), net.encoder.get_input_embeddings().weight[ids])
    out = net(**window())
    out.action_preds = out.state_preds
    assert out["action_preds"] is out.state_preds
    with pytest.raises(TypeError, match=r"not \['actions'\]"):
        type(out)(actions=1)
    assert type(out)(1, 2).action_preds == 2
    net.save_pretrained(tmp_path / "root")
    model(seed=5, vocab_size=13).save_pretrained(tmp_path / "root" / "sub")
    load = DecisionTransformerModel.from_pretrained
    root, sub = load(tmp_path / "root"), load(tmp_path / "root", subfolder="sub")
    assert not torch.equal(root.network.embed_ln.weight, sub.network.embed_ln.weight)
    for wrong in (dict(token="secret"), dict(output_loading_info=True),
                  dict(config=net.config, n_layer=2)):  # fmt: skip
        with pytest.raises(TypeError, match=r"no keywords|beside a config"):
            load(tmp_path / "root", **wrong)
    with pytest.raises(ValueError, match=r"n_layer is 5, and the weights have 2"):
        load(tmp_path / "root", n_layer=5)
    # what is saved replaces what was there, in whichever form
    other = model(seed=6, vocab_size=13)
    other.save_pretrained(tmp_path / "root", safe_serialization=False)
    again = load(tmp_path / "root")
    assert torch.equal(again.network.embed_ln.weight, other.network.embed_ln.weight)
    with pytest.raises(ValueError, match="may not be called"):
        DecisionTransformerConfig.from_dict({"to_dict": 3})
    assert DecisionTransformerConfig.from_dict({"num_hidden_layers": 3}, n_layer=5).n_layer == 5
    for name in ("vocab_size", "state_dim"):
        with pytest.raises(ValueError, match=f"{name}=-1 must be an integer"):
            DecisionTransformerModel(DecisionTransformerConfig(**{name: -1}))


def test_laplace_has_the_paper_values():
    # a normal distribution's function with mean √½ and deviation √(1/4π): ½ at the mean
    at = torch.tensor([math.sqrt(0.5), math.sqrt(0.5) + math.sqrt(1 / (4 * math.pi))])
    torch.testing.assert_close(
        activation("laplace")(at), torch.tensor([0.5, 0.841345]), atol=1e-5, rtol=0
    )
