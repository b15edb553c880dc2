"""What was saved by 0.1.0: weights and pickles under the names of that version."""

import pickle
import pickletools

import pytest
import torch

from rllib_dt import DTConfig
from rllib_dt.huggingface import load_pretrained, save_pretrained
from rllib_dt.learning.learner import DTTorchLearner
from rllib_dt.learning.rl_module import DTTorchRLModule
from rllib_dt.reading.credentials import Sealed
from rllib_dt.reading.offline_data import DTOfflineData
from rllib_dt.rollout.env_runner import DTEnvRunner
from tests.conftest import tiny_config

FORMER = {
    ("rllib_dt.runtime.source", "DTOfflineData"): DTOfflineData,
    ("rllib_dt.runtime.env_runner", "DTEnvRunner"): DTEnvRunner,
    ("rllib_dt.runtime.learner", "DTTorchLearner"): DTTorchLearner,
    ("rllib_dt.runtime.rl_module", "DTTorchRLModule"): DTTorchRLModule,
    ("rllib_dt.runtime.remote_files", "Sealed"): Sealed,
    ("rllib_dt.algorithm.config", "DTConfig"): DTConfig,
}


def test_settings_that_an_older_version_did_not_have_get_their_defaults():
    config = DTConfig().training(lr=0.5)
    older = {k: v for k, v in vars(config).items() if k not in ("micro_batch_size", "ema_decay")}
    restored = object.__new__(DTConfig)
    restored.__setstate__(older)
    assert (restored.micro_batch_size, restored.ema_decay, restored.lr) == (None, None, 0.5)
    assert vars(pickle.loads(pickle.dumps(config))).keys() == vars(config).keys()


@pytest.mark.parametrize("former", FORMER, ids=lambda f: f[1])
def test_classes_unpickle_from_their_former_modules(former):
    module, name = former
    pickled = f"c{module}\n{name}\n.".encode()  # protocol 0: a reference to a class
    assert [op.name for op, *_ in pickletools.genops(pickled)] == ["GLOBAL", "STOP"]
    assert pickle.loads(pickled) is FORMER[former]


def former_weights(network, prefix=""):
    """The network's weights as 0.1.0 named them, with bounds that the network does not have."""
    state = {f"{prefix}{name}": value.clone() for name, value in network.state_dict().items()}
    state[f"{prefix}action_head.middle"] += 0.25
    return {name.replace("action_head.", "codec."): value for name, value in state.items()}


def test_weights_of_the_action_head_load_under_their_former_name(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).build_algo()
    module = algo.get_module()
    algo.stop()
    network, before = module.network, module.network.action_head.middle.clone()
    state = former_weights(network)
    assert "codec.middle" in state
    network.load_state_dict(state)
    torch.testing.assert_close(network.action_head.middle, before + 0.25)
    module.set_state({k: v.numpy() for k, v in former_weights(network, "network.").items()})
    torch.testing.assert_close(module.network.action_head.middle, before + 0.5)


def test_folders_of_the_former_names_load(cluster, tiny_data, tmp_path):
    from safetensors.torch import load_file, save_file

    algo = tiny_config(tiny_data[0]).build_algo()
    save_pretrained(algo.get_module().network, tmp_path)
    algo.stop()
    path = tmp_path / "rllib_dt.safetensors"
    own = load_file(path)
    own["action_head.middle"] += 0.25
    save_file({k.replace("action_head.", "codec."): v for k, v in own.items()}, path)
    loaded = load_pretrained(tmp_path).action_head.middle
    torch.testing.assert_close(loaded, own["action_head.middle"])
