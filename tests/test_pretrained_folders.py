"""Folders of pretrained weights: their forms, their damage, and what RLlib makes of them."""

import json
import logging
import pickle
import shutil

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from safetensors.torch import load_file, save_file

from rllib_dt import DT, DTConfig, DTModelConfig
from rllib_dt.huggingface import (
    DecisionTransformerConfig,
    DecisionTransformerModel,
    load_pretrained,
    save_pretrained,
)
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.policy import Policy
from rllib_dt.policy.weight_files import WeightsError
from tests.conftest import tiny_config
from tests.training import same, weights

S, A, D = 3, 1, 16
SIZES = dict(state_dim=S, act_dim=A, hidden_size=D, n_layer=1, max_ep_len=211, vocab_size=9)


def folder_of(path, change=lambda state: state, form="safetensors", **settings):
    """Writes a folder as `transformers` does, with its weights changed."""
    torch.manual_seed(3)
    model = DecisionTransformerModel(DecisionTransformerConfig(**(SIZES | settings)))
    model.save_pretrained(path)
    state = change(load_file(path / "model.safetensors"))
    (path / "model.safetensors").unlink()
    write(path, state, form)
    return path


def write(path, state, form):
    if form == "safetensors":
        save_file(state, path / "model.safetensors")
    elif form == "bin":
        torch.save(state, path / "pytorch_model.bin")
    else:
        kind = "model.safetensors" if form == "shards" else "pytorch_model.bin"
        stem, suffix = kind.split(".")
        names, parts = sorted(state), {}
        for number, part in enumerate((names[::2], names[1::2]), 1):
            file = f"{stem}-0000{number}-of-00002.{suffix}"
            held = {name: state[name] for name in part}
            save_file(held, path / file) if form == "shards" else torch.save(held, path / file)
            parts |= dict.fromkeys(part, file)
        (path / f"{kind}.index.json").write_text(json.dumps({"weight_map": parts}))


@pytest.mark.parametrize("form", ["bin", "shards", "bin shards"])
def test_every_form_of_weights_is_read(tmp_path, form):
    want = load_pretrained(folder_of(tmp_path / "a")).state_dict()
    got = load_pretrained(folder_of(tmp_path / "b", form=form)).state_dict()
    assert same(got, want)
    assert same(want, got)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "decision_transformer."])
def test_prefixes_of_names_are_taken_off(tmp_path, prefix):
    want = load_pretrained(folder_of(tmp_path / "a")).state_dict()
    change = lambda state: {prefix + name: value for name, value in state.items()}  # noqa: E731
    got = load_pretrained(folder_of(tmp_path / "b", change)).state_dict()
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_masks_of_older_versions_are_left_out_in_silence_and_other_weights_with_a_warning(
    tmp_path, caplog
):
    def older(state):
        causal = {"encoder.h.0.attn.bias": torch.ones(1, 1, 7, 7).to(torch.uint8),
                  "encoder.h.0.attn.masked_bias": torch.tensor(-1e4)}  # fmt: skip
        return state | causal

    load_pretrained(folder_of(tmp_path / "4.22", older))
    assert not caplog.records
    more = lambda state: state | {"value_head.weight": torch.ones(3)}  # noqa: E731
    load_pretrained(folder_of(tmp_path / "more", more))
    assert "no place for are left out: ['value_head.weight']" in caplog.text


def without(*names):
    return lambda state: {n: v for n, v in state.items() if not n.startswith(names)}


def broken(name, value):
    def change(state):
        state[name] = state[name].clone()
        state[name].view(-1)[0] = value
        return state

    return change


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("predict_state", "encoder.ln_f"), r"missing \['backbone.ln_f.bias', .*predict_st"),
        (without("embed_state"), "the weight embed_state.weight is missing"),
        (without("encoder.h.0"), r"the weights are of the blocks \[\]"),
        (broken("embed_return.bias", float("nan")), r"not finite: \['embed_return.bias'\]"),
        (broken("encoder.ln_f.weight", float("inf")), r"not finite: \['backbone.ln_f.weight'\]"),
        (
            lambda s: s | {"embed_state.weight": torch.ones(D, 5)},
            "state_dim is 3, and the weights have 5",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message, form):
    with pytest.raises(WeightsError, match=f"{tmp_path}.*{message}"):
        load_pretrained(folder_of(tmp_path / "a", change, form))


class Hostile:
    def __reduce__(self):
        return open, ("/tmp/never-written-by-loading", "w")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"", "cannot be read"),
        ("model.safetensors", b"\x08" + b"\0" * 7 + b"{}      ", "missing"),
        ("pytorch_model.bin", b"", "is damaged, or was not written by torch.save"),
        ("pytorch_model.bin", pickle.dumps(Hostile()), "torch.save|holds objects of"),
        ("pytorch_model.bin", [1, 2], "holds a list, wanted a model's state_dict"),
        ("pytorch_model.bin", {"a": 3}, r"holds more than tensors: \['a'\]"),
        ("pytorch_model.bin", torch.nn.Linear(2, 2), "holds objects of torch.nn.*state_dict"),
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", b"[]", "config.json holds a list"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b.safetensors"}}', "no file"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}', "is missing"),
    ],
)
def test_damaged_and_hostile_files_are_refused_with_their_path(tmp_path, file, content, message):
    folder = folder_of(tmp_path / "a")
    if file != "config.json":
        (folder / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (folder / file).write_bytes(content)
    else:
        torch.save(content, folder / file)
    with pytest.raises((WeightsError, FileNotFoundError), match=message) as caught:
        load_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_settings_that_no_network_has_are_refused_with_the_file(tmp_path):
    folder = folder_of(tmp_path / "a")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"n_head": 5}))
    with pytest.raises(WeightsError, match=rf"{tmp_path}.*config.json.*n_head=5"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("observation_std", 0.0),
        ("return_scale", -1.0),
        ("observation_mean", float("nan")),
        ("action_head.half_range", 0.0),
    ],
)
def test_statistics_that_cannot_divide_are_refused(tmp_path, name, value):
    save_pretrained(load_pretrained(folder_of(tmp_path / "a")), tmp_path / "b")
    own = load_file(tmp_path / "b" / "rllib_dt.safetensors")
    own[name].view(-1)[0] = value
    save_file(own, tmp_path / "b" / "rllib_dt.safetensors")
    with pytest.raises(WeightsError, match=name):
        load_pretrained(tmp_path / "b")


def test_half_of_what_is_written_together_is_refused(tmp_path):
    for name in ("rllib_dt.json", "rllib_dt.safetensors"):
        save_pretrained(load_pretrained(folder_of(tmp_path / f"{name} a")), tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(WeightsError, match="which are written together"):
            load_pretrained(tmp_path / name)
    save_pretrained(load_pretrained(folder_of(tmp_path / "a")), tmp_path / "b")
    own = load_file(tmp_path / "b" / "rllib_dt.safetensors")
    own.pop("observation_mean")
    save_file(own, tmp_path / "b" / "rllib_dt.safetensors")
    with pytest.raises(WeightsError, match=r"lacks \['observation_mean'\]"):
        load_pretrained(tmp_path / "b")
    (tmp_path / "b" / "rllib_dt.json").write_text('{"observation_space": 5}')
    with pytest.raises(WeightsError, match=r"rllib_dt.json describes no spaces"):
        load_pretrained(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 2**30}, "n_layer is 1073741824, and the weights have 1"),
        ({"hidden_size": 2**20}, "hidden_size is 1048576, and the weights have 16"),
        ({"max_ep_len": 2**30}, "max_ep_len is 1073741824, and the weights have 211"),
        ({"state_dim": "3"}, "state_dim is '3', and the weights have 3"),
        ({"state_dim": 2**30}, "state_dim is 1073741824, and the weights have 3"),
    ],
)
def test_sizes_are_compared_with_the_weights_before_anything_is_built(tmp_path, change, message):
    folder = folder_of(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WeightsError, match=message):
        load_pretrained(folder)
    with pytest.raises(ValueError, match=next(iter(change))):
        DecisionTransformerModel.from_pretrained(folder)


def test_other_names_of_settings_count(tmp_path):
    folder = folder_of(tmp_path / "a", n_head=4)
    text = (folder / "config.json").read_text().replace("n_head", "num_attention_heads")
    (folder / "config.json").write_text(text.replace("n_layer", "num_hidden_layers"))
    assert load_pretrained(folder).config.n_head == 4
    with pytest.raises(ValueError, match="has a position embedding"):
        load_pretrained(folder, n_positions=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to(torch.complex64), "complex64"),
        (lambda w: w.to(torch.int32), "int32"),
        (lambda w: w.to(torch.float8_e4m3fn), "float8"),
        (lambda w: w.to_sparse(), "sparse"),
        (lambda w: w[0, 0], "wanted two axes"),
        (lambda w: w.double() * 1e300, "not finite"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path, change, message):
    name = "embed_timestep.weight"
    replace = lambda state: state | {name: change(state[name])}  # noqa: E731
    with pytest.raises(WeightsError, match=message):
        load_pretrained(folder_of(tmp_path / "a", replace, "bin"))


def test_what_only_their_model_reads_is_kept_for_exports(tmp_path):
    folder = folder_of(tmp_path / "a", use_cache=False, bos_token_id=5)
    save_pretrained(load_pretrained(folder), tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (config["vocab_size"], config["use_cache"], config["bos_token_id"]) == (9, False, 5)
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_statistics_can_be_given(tmp_path):
    given = dict(observation_mean=[1, 2, 3], observation_std=np.array([4.0, 5, 6]))
    network = load_pretrained(folder_of(tmp_path / "a"), **given, return_scale=100)
    assert network.observation_mean.tolist() == [1, 2, 3]
    assert network.observation_std.tolist() == [4, 5, 6]
    assert network.return_scale == 100
    for name, value in (("observation_mean", [1, 2]), ("observation_std", [1, 0, 1]),
                        ("observation_mean", [1, 2, float("inf")]), ("return_scale", 0.0),
                        ("observation_std", [1e-60, 1, 1]), ("observation_mean", [1e39, 1, 1]),
                        ("observation_std", ["a", "b", "c"])):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            load_pretrained(tmp_path / "a", **{name: value})


@pytest.mark.parametrize("attention", ["context", "window"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_networks_act_in_other_dtypes_within_the_bounds(dtype, attention):
    """Statistics and bounds stay exact: -0.4 in bfloat16 would be -0.4004, outside of them."""
    torch.manual_seed(0)
    config = DTModelConfig(hidden_size=D, n_layer=1, max_ep_len=31, attention=attention,
                           context_length=4)  # fmt: skip
    plain = DecisionTransformer(config, Box(-9, 9, (S,)), Box(-0.4, 0.4, (A,))).eval()
    plain.set_normalization(torch.full((S,), 0.1), torch.full((S,), 1.3), 123.4)
    with torch.no_grad():
        plain.predict_action.weight.mul_(40)
        other = DecisionTransformer(config, Box(-9, 9, (S,)), Box(-0.4, 0.4, (A,))).eval()
        other.load_state_dict(plain.state_dict())
    other.to(getattr(torch, dtype))
    assert other.dtype == getattr(torch, dtype)
    for name in ("observation_mean", "return_scale"):
        assert torch.equal(getattr(other, name).float(), getattr(plain, name))
    from rllib_dt import TrainedPolicy

    actors = [
        TrainedPolicy(network=network).actor(target_return=50.0, num_envs=2)
        for network in (plain, other)
    ]
    generator = np.random.default_rng(0)
    for _ in range(9):
        observed = generator.normal(size=(2, S)).astype(np.float32)
        want, got = (actor.predict(observed, np.ones(2)) for actor in actors)
        assert np.abs(got).max() <= np.float32(0.4)
        np.testing.assert_allclose(got, want, atol=1e-5 if dtype == "float64" else 0.05)
    assert Policy(other).network is other


# --- in RLlib


def pendulum(**model):
    return (
        DTConfig()
        .environment("Pendulum-v1")
        .debugging(seed=0)
        .rl_module(model_config=DTModelConfig(**model))
        .evaluation(target_returns=[-200.0], evaluation_duration=2, evaluation_num_env_runners=0)
    )


@pytest.mark.parametrize("change", [lambda s: s, without("encoder.wpe", "encoder.wte"),
                                    without("embed_ln")], ids=["whole", "wpe", "ln"])  # fmt: skip
def test_a_folder_evaluates_without_any_data(cluster, tmp_path, change, caplog):
    folder = folder_of(tmp_path / "hf", change)
    config = pendulum(pretrained=str(folder), context_length=5)
    with caplog.at_level(logging.WARNING, logger="rllib_dt"):
        algo = config.build_algo()
    assert "taken for the bounds of Box(-2.0, 2.0" in caplog.text
    assert "holds no statistics" in caplog.text
    first = algo.evaluate()["env_runners"]
    assert first["num_episodes"] == 2
    assert weights(algo)["action_head.half_range"] == 2.0
    with pytest.raises(ValueError, match=r"offline_data\(input_=…\) is not set"):
        algo.train()
    path = algo.save_to_path(tmp_path / "ck")
    algo.stop()
    shutil.rmtree(folder)
    again = DT.from_checkpoint(path)
    assert again.evaluate()["env_runners"]["episode_return_mean"] == first["episode_return_mean"]
    again.stop()


def test_without_a_folder_and_without_data_an_algorithm_is_refused():
    with pytest.raises(ValueError, match=r"offline_data\(input_=…\) must be a path"):
        pendulum().validate()


def test_settings_that_are_given_win_even_where_they_equal_a_default(tmp_path):
    folder = folder_of(tmp_path / "a")
    network = load_pretrained(folder, context_length=5, attn_pdrop=0.3, resid_pdrop=0.4)
    save_pretrained(network, tmp_path / "b")
    given = dict(pretrained=str(tmp_path / "b"), context_length=20, attn_pdrop=0.1)
    for model_config in (DTModelConfig(**given), given):
        config = pendulum().rl_module(model_config=model_config)
        config.validate()
        found = config.dt_model_config
        assert (found.context_length, found.attn_pdrop, found.resid_pdrop) == (20, 0.1, 0.4)
        assert found.hidden_size == D
    assert pickle.loads(pickle.dumps(DTModelConfig(n_layer=3))).given == {"n_layer"}


def test_a_folder_is_read_again_if_settings_are_given_again(tmp_path):
    folder = str(folder_of(tmp_path / "a", n_head=4))
    config = pendulum(pretrained=folder)
    config.validate()
    again = config.copy(copy_frozen=False)
    again.rl_module(model_config={"pretrained": folder, "context_length": 7})
    again.validate()
    found = again.dt_model_config
    assert (found.n_head, found.hidden_size, found.context_length) == (4, D, 7)


def test_statistics_of_observations_can_be_set(cluster, tiny_data, tmp_path, caplog):
    given = dict(observation_mean=[1.0, 2.0, 3.0], observation_std=np.array([4, 5, 6]))
    algo = tiny_config(tiny_data[0]).training(**given).build_algo()
    assert weights(algo)["observation_std"].tolist() == [4, 5, 6]
    algo.train()
    algo.stop()
    folder = folder_of(tmp_path / "hf")
    config = pendulum(pretrained=str(folder)).training(**given, return_scale=1000.0)
    algo = config.build_algo()
    assert weights(algo)["observation_mean"].tolist() == [1, 2, 3]
    assert weights(algo)["return_scale"] == 1000.0
    assert "holds no statistics" not in caplog.text
    algo.stop()


@pytest.mark.parametrize(
    "given", [[1.0, 2.0], [[1.0, 2.0, 3.0]], [1.0, 2.0, float("nan")], "abc", 3.0, [0.0, 1.0, 1.0]]
)
def test_statistics_that_do_not_fit_are_refused(given, tiny_data):
    config = tiny_config(tiny_data[0]).training(observation_std=given)
    with pytest.raises(ValueError, match="observation_std"):
        config.validate()
