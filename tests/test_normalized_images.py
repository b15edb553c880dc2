"""`DTModelConfig(normalize_images=True)`: the data's mean image, and one deviation."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rllib_dt import DT, write_episodes
from rllib_dt.episodes.frames import stack_frames
from rllib_dt.spaces.encoders import Convolutions, leaf_encoder
from tests.composites import ARM, ROBOT, config_of, make
from tests.conftest import tiny_config
from tests.environments import Sampled
from tests.training import learner_results, same, weights

F, H, W, D = 3, 9, 8, 5
LENGTHS = (7, 5, 3, 6)
STACKS, ACTIONS = Box(0, 255, (F, H, W), np.uint8), Discrete(2)


def frames_of(length):
    return np.random.default_rng(length).integers(40, 90, (length + 1, H, W), dtype=np.uint8)


def recorded(folder, stacked):
    space = STACKS if stacked else Box(0, 255, (H, W), np.uint8)
    episodes = [
        dict(
            obs=stack_frames(frames_of(n), F) if stacked else frames_of(n),
            actions=np.arange(n) % 2,
            rewards=np.ones(n),
            terminated=True,
            truncated=False,
        )
        for n in LENGTHS
    ]
    write_episodes(episodes, folder, space, ACTIONS)
    return str(folder)


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
    data = recorded(tmp_path / "data", stacked)
    config = tiny_config(data, normalize_images=True)
    config.offline_data(frame_stack=F, pool_capacity_steps=capacity)
    algo = config.environment(observation_space=STACKS, action_space=ACTIONS).build_algo()
    encoder = algo.get_module().network.embed_state
    algo.stop()
    # an episode's first stack repeats its first frame
    padded = [np.concatenate([np.repeat(f[:1], F - 1, 0), f]) for f in map(frames_of, LENGTHS)]
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
