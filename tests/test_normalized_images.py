"""`DTModelConfig(normalize_images=True)`: the data's mean image, and one deviation."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from rllib_dt import DT, write_episodes
from rllib_dt.episodes.statistics import Statistics
from rllib_dt.spaces.encoders import Convolutions, leaf_encoder
from tests.composites import ARM, ROBOT, config_of, make
from tests.conftest import tiny_config
from tests.environments import Sampled
from tests.test_frames import STACKS, F, frame_config, frames_of, record_frames
from tests.training import learner_results, same, weights

H, W, D = 9, 8, 5
LENGTHS = (7, 5, 3, 6)


@pytest.mark.semantics(29)
@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 255.0), (np.bool_, 1.0)])
def test_images_are_scaled_once_then_centred_and_divided(dtype, scale):
    torch.manual_seed(0)
    space = Box(0, 1 if dtype is np.bool_ else 255, (H, W, 2), dtype)
    encoder = Convolutions(space, D, normalize=True)
    plain = Convolutions(space, D)
    plain.load_state_dict({name: encoder.state_dict()[name] for name in plain.state_dict()})
    bits = np.random.default_rng(0).integers(0, 2, (2, 3, H, W, 2))
    images = torch.from_numpy(bits.astype(dtype))
    torch.testing.assert_close(encoder(images), plain(images))  # before any statistics

    seen = []
    encoder.convolutions.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    mean = torch.rand(H, W, 2, dtype=torch.float64) * scale
    encoder.set_statistics(mean, torch.tensor(0.25 * scale))
    encoder(images)
    wanted = (images.double() / scale - mean / scale) / 0.25
    torch.testing.assert_close(seen[0], wanted.flatten(0, 1).permute(0, 3, 1, 2).float())


@pytest.mark.parametrize("capacity", [None, 12])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_statistics_are_those_of_the_recorded_frames(cluster, tmp_path, capacity, stacked):
    data = record_frames(tmp_path / "data", LENGTHS, stacked=stacked)
    config = frame_config(data, pool_capacity_steps=capacity)
    config.rl_module(model_config={**config.model_config, "normalize_images": True})
    algo = config.build_algo()
    encoder = algo.get_module().network.embed_state
    algo.stop()
    # an episode's first stack repeats its first frame
    recorded = [frames_of(n, n) for n in LENGTHS]
    padded = [np.concatenate([np.repeat(f[:1], F - 1, 0), f]) for f in recorded]
    frames = np.concatenate([f[:-1] for f in padded]) / 255.0
    mean = frames.mean(axis=0)
    np.testing.assert_allclose(encoder.mean, np.stack([mean] * F), rtol=1e-5)
    deviation = np.sqrt(np.square(frames - mean).mean())
    assert float(encoder.std) == pytest.approx(deviation, rel=1e-3)


@pytest.mark.parametrize("attention", ["context", "window"])
def test_an_image_among_other_leaves_is_trained_saved_and_restored(cluster, tmp_path, attention):
    write_episodes(make(ROBOT, ARM), tmp_path / "data", ROBOT, ARM)
    spaces = {"observation_space": ROBOT, "action_space": ARM}
    settings = dict(normalize_images=True, attention=attention)
    config = config_of(Sampled, spaces, tmp_path / "data", **settings)
    algo = config.offline_data(actions_in_input_normalized=False).build_algo()
    assert np.isfinite(learner_results(algo)["action_loss"])
    network = algo.get_module().network
    camera = leaf_encoder(network.embed_state, "camera")
    images = np.concatenate([episode["obs"]["camera"][:-1] for episode in make(ROBOT, ARM)]) / 255
    np.testing.assert_allclose(camera.mean, images.mean(axis=0), rtol=1e-5)
    assert float(camera.std) == pytest.approx(images.std(axis=0).mean(), rel=0.05)
    assert algo.evaluate()["env_runners"]["num_episodes_failed"] == 0
    path, kept = algo.save_to_path(tmp_path / "checkpoint"), weights(algo)
    algo.stop()
    algo = DT.from_checkpoint(path)
    assert same(weights(algo), kept)
    algo.stop()


def test_without_the_setting_nothing_is_saved_or_computed():
    assert not [n for n in Convolutions(STACKS, D).state_dict() if n in ("mean", "std")]


def test_bits_have_statistics_too():
    values = np.random.default_rng(0).random((600, H, W)) < 0.25
    statistics = Statistics((), [""])
    statistics._add_images("", values)
    mean, std = statistics._mean_and_std("obs")
    np.testing.assert_allclose(mean, values.mean(axis=0))
    assert float(std) == pytest.approx(np.sqrt(values.var(axis=0).mean()), rel=1e-3)


@pytest.mark.parametrize("space", [Box(-1.0, 1.0, (3,)), Dict(a=Box(0, 255, (4,), np.uint8))])
def test_without_images_the_setting_is_refused(space):
    config = tiny_config("nowhere", normalize_images=True).environment(observation_space=space)
    with pytest.raises(ValueError, match=r"normalize_images=True\): .* has no images that pass"):
        config.validate()
    config.environment(observation_space=Dict(a=Box(0, 255, (9, 8), np.uint8)))
    config.validate()
