"""Every leaf space, observed and acted in: recordings, predictions, losses, actions."""

import functools
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_dt import DecisionTransformer, DTModelConfig, Window, write_episodes
from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.spaces.descriptions import describe_space, same_space, space_from_description
from rllib_dt.spaces.encoders import Convolutions, image_axes
from rllib_dt.spaces.heads import action_head
from rllib_dt.spaces.leaves import UnsupportedSpaceError, num_numbers, out_of_space, step_layout
from tests.composites import check_the_whole_way, config_of
from tests.conftest import TINY
from tests.environments import Sampled
from tests.recordings import read

K = 4
SHAPES = [(), (1,), (3,), (2, 3), (3, 2, 2)]


def boxes(dtypes):
    @st.composite
    def draw(draw):
        dtype, shape = np.dtype(draw(st.sampled_from(dtypes))), draw(st.sampled_from(SHAPES))
        if dtype.kind == "b":
            return Box(np.zeros(shape, bool), np.ones(shape, bool), shape, np.bool_)
        if dtype.kind in "iu":
            high = draw(st.integers(1, int(np.iinfo(dtype).max)))
            return Box(0, high, shape, dtype.type)
        low = np.array(draw(bounds(shape)), dtype).reshape(shape)
        width = np.array(draw(bounds(shape, positive=True)), dtype).reshape(shape)
        return Box(low, low + width, shape, dtype.type)

    return draw()


def bounds(shape, *, positive=False):
    size = int(np.prod(shape))
    values = st.floats(0.125 if positive else -8, 8, width=32)
    return st.lists(values, min_size=size, max_size=size)


@st.composite
def unbounded(draw):
    box = draw(boxes([np.float32]))
    ends = [
        np.where(draw(st.lists(st.booleans(), min_size=box.low.size, max_size=box.low.size)), 1, 0)
        for _ in range(2)
    ]
    low = np.where(np.reshape(ends[0], box.shape), -np.inf, box.low).astype(np.float32)
    high = np.where(np.reshape(ends[1], box.shape), np.inf, box.high).astype(np.float32)
    return Box(low, high, box.shape, np.float32)


discretes = st.builds(
    lambda n, start: Discrete(n, start=start), st.integers(1, 5), st.integers(-3, 3)
)
multi_discretes = st.one_of(
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(MultiDiscrete),
    st.just(MultiDiscrete([[2, 3], [4, 1]], start=[[0, -1], [5, 2]])),
)
multi_binaries = st.sampled_from([MultiBinary(1), MultiBinary(4), MultiBinary((2, 3))])
categories = st.one_of(discretes, multi_discretes, multi_binaries)
observation_spaces = st.one_of(
    boxes([np.float32, np.float64, np.uint8, np.bool_, np.int16]), unbounded(), categories
)
action_spaces = st.one_of(boxes([np.float32, np.float64]), unbounded(), categories)
seeds = st.integers(0, 2**31 - 1)


def samples(space, seed, steps):
    """(T, …) values of a space, in the pool's dtype."""
    space.seed(seed)
    values = np.stack([np.asarray(space.sample()) for _ in range(steps)])
    return values.astype(step_layout(space)[1])


def windows(observation_space, action_space, seed, batch=3):
    """Windows whose first row is padded on the left by 2 steps, and its second by none."""
    steps = batch * K
    mask = torch.ones(batch, K, dtype=torch.bool)
    mask[0, :2] = False

    def column(space, seed):
        values = torch.from_numpy(samples(space, seed, steps))
        return values.reshape(batch, K, *values.shape[1:])

    rng = np.random.default_rng(seed)
    return Window(
        observations=column(observation_space, seed),
        actions=column(action_space, seed + 1),
        returns_to_go=torch.from_numpy(rng.standard_normal((batch, K, 1)).astype(np.float32)),
        timesteps=torch.arange(K).expand(batch, K) * mask,
        mask=mask,
    )


def network(observation_space, action_space, **model):
    torch.manual_seed(0)
    config = DTModelConfig(**(TINY | dict(context_length=K, attn_pdrop=0.0) | model))
    return DecisionTransformer(config, observation_space, action_space).eval()


def inside(space, action):
    action = np.asarray(action)
    if isinstance(space, Box):
        return space.shape == action.shape and space.contains(action.astype(space.dtype))
    return space.contains(action if action.ndim else action.item())


@settings(max_examples=60, deadline=None)
@given(st.one_of(observation_spaces, action_spaces), seeds)
def test_descriptions_restore_a_space(space, seed):
    restored = space_from_description(describe_space(space))
    assert restored == space
    assert same_space(space, restored)
    assert restored.dtype == space.dtype
    assert out_of_space(restored, samples(space, seed, 5)) is None


@settings(max_examples=40, deadline=None)
@given(observation_spaces, action_spaces, seeds)
def test_written_values_read_back_exactly(observation_space, action_space, seed):
    lengths = (3, 1)
    episodes = [
        dict(
            obs=samples(observation_space, seed + i, length + 1),
            actions=samples(action_space, seed + i, length),
            rewards=np.arange(length),
            terminated=True,
            truncated=False,
        )
        for i, length in enumerate(lengths)
    ]
    with tempfile.TemporaryDirectory() as folder:
        (path,) = write_episodes(episodes, Path(folder) / "data", observation_space, action_space)
        found = read(path).episodes
    for given_one, episode in zip(episodes, found, strict=True):
        conformed = episode.conform(observation_space, action_space)
        np.testing.assert_array_equal(conformed.observations, given_one["obs"])
        np.testing.assert_array_equal(conformed.actions, given_one["actions"])
        assert conformed.observations.dtype == step_layout(observation_space)[1]
        assert conformed.actions.dtype == step_layout(action_space)[1]


@pytest.mark.semantics(5, 9)
@settings(max_examples=60, deadline=None)
@given(observation_spaces, action_spaces, seeds)
def test_padding_changes_nothing_and_actions_are_legal(observation_space, action_space, seed):
    net = network(observation_space, action_space)
    window = windows(observation_space, action_space, seed)
    other = windows(observation_space, action_space, seed + 9)
    padded = ~window.mask

    def spoiled(values, others):
        return torch.where(padded.reshape(*padded.shape, *[1] * (values.ndim - 2)), others, values)

    changed = Window.from_columns(
        {
            name: value if name in ("t", "loss_mask") else spoiled(value, other.columns()[name])
            for name, value in window.columns().items()
        }
    )
    with torch.no_grad():
        want, got = (net.predict(w, only_actions=True).action_outputs for w in (window, changed))
        torch.testing.assert_close(got[window.mask], want[window.mask])
        head = net.action_head
        losses = [head.loss_sum(o, w.actions, w.mask) for o, w in ((want, window), (got, changed))]
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0].isfinite()
    torch.manual_seed(seed % 1000)
    for temperature in (0.0, 1.0):
        for action in net.act(window, temperature=temperature).numpy():
            assert inside(action_space, action)


@settings(max_examples=60, deadline=None)
@given(action_spaces, seeds)
def test_a_head_recognises_the_recorded_action(space, seed):
    """Outputs that are sure of an action lose nothing on it, and pick it."""
    head = action_head(space, tanh=False)
    actions = torch.from_numpy(samples(space, seed, 6)).unsqueeze(0)
    features = head.features(actions)
    assert features.shape == (1, 6, head.size)
    sure = features if isinstance(space, Box) else (features - 0.5) * 1000
    torch.testing.assert_close(head.losses(sure, actions), torch.zeros(1, 6), atol=1e-4, rtol=0)
    picked = head.act(sure)
    assert picked.shape == actions.shape
    torch.testing.assert_close(picked.double(), actions.double(), rtol=1e-5, atol=1e-5)
    mask = torch.ones(1, 6, dtype=torch.bool)
    for name, value in head.metric_sums(sure, actions, mask).items():
        assert (name, int(value)) == ("action_accuracy", 6)


def test_the_loss_of_several_categories_is_the_sum_of_theirs():
    space = MultiDiscrete([2, 3])
    outputs = torch.tensor([[[0.3, -0.2, 1.0, 0.0, -1.0]]])
    actions = torch.tensor([[[1, 2]]])
    want = -(
        torch.tensor([0.3, -0.2]).log_softmax(0)[1]
        + torch.tensor([1.0, 0.0, -1.0]).log_softmax(0)[2]
    )
    torch.testing.assert_close(action_head(space, tanh=True).losses(outputs, actions)[0, 0], want)
    bits = action_head(MultiBinary(2), tanh=True)
    logits = torch.tensor([[[0.7, -1.1]]])
    want = -(torch.tensor(0.7).sigmoid().log() + torch.tensor(1.1).sigmoid().log())
    torch.testing.assert_close(bits.losses(logits, torch.tensor([[[1, 0]]]))[0, 0], want)


BOUNDED = torch.tensor([True, False, False])


def test_unbounded_components_have_the_datas_unit():
    low, high = np.array([[-2.0, -np.inf, 0.0], [2.0, np.inf, np.inf]], np.float32)
    space = Box(low, high, dtype=np.float32)
    head = action_head(space, tanh=True)
    head.set_statistics(torch.tensor([9.0, 10.0, 3.0]), torch.tensor([9.0, 5.0, 2.0]))
    features = head.features(torch.tensor([[1.0, 20.0, 1.0]]))
    torch.testing.assert_close(features, torch.tensor([[0.5, 2.0, -1.0]]))
    raw = torch.tensor([[3.0, 3.0, -3.0]])
    squashed = head.squash(raw)
    torch.testing.assert_close(squashed, raw.tanh().where(BOUNDED, raw))
    acted = head.act(squashed)
    torch.testing.assert_close(acted, torch.tensor([[2 * float(raw[0, 0].tanh()), 25.0, 0.0]]))


# ---- images


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((84, 84), (None, None, 0, 1)),
        ((84, 84, 3), (None, 2, 0, 1)),
        ((3, 84, 84), (None, 0, 1, 2)),
        ((4, 84, 84), (None, 0, 1, 2)),
        ((10, 10, 4), (None, 2, 0, 1)),
        ((4, 84, 84, 3), (0, 3, 1, 2)),
        ((4, 3, 84, 84), (0, 1, 2, 3)),
    ],
)
def test_channels_are_the_shorter_end(shape, axes):
    assert image_axes(Box(0, 255, shape, np.uint8)) == axes


@pytest.mark.semantics(29)
@pytest.mark.parametrize("shape", [(40, 36), (40, 36, 3), (3, 40, 36), (2, 40, 36, 3)])
def test_layouts_of_an_image_show_the_network_the_same_pixels(shape):
    """Bytes are divided by 255 once, wherever the channels are."""
    space = Box(0, 255, shape, np.uint8)
    encoder = Convolutions(space, 8)
    images = torch.from_numpy(samples(space, 0, 2)).unsqueeze(0)
    frames, channels, height, breadth = image_axes(space)
    order = [a for a in (frames, channels, height, breadth) if a is not None]
    pixels = images[0].numpy().transpose(0, *(a + 1 for a in order)).astype(np.float32) / 255
    pixels = torch.from_numpy(pixels.reshape(2, -1, 40, 36))
    want = encoder.linear(encoder.convolutions(pixels).flatten(1)).tanh()
    torch.testing.assert_close(encoder(images)[0], want)
    assert float(pixels.max()) <= 1.0


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [(4, 84, 84), (84, 84, 3), (2, 84, 84, 3), (40, 900)])
def test_images_that_are_encoded_in_parts_are_encoded_the_same(monkeypatch, shape, normalize):
    space = Box(0, 255, shape, np.uint8)
    torch.manual_seed(0)
    encoder = Convolutions(space, 8, normalize=normalize)
    if normalize:
        mean = torch.from_numpy(samples(space, 2, 1))[0].float()
        encoder.set_statistics(mean, torch.tensor(55.0))
    images = torch.from_numpy(samples(space, 1, 10)).view(2, 5, *shape)
    given = []
    encoder.convolutions.register_forward_hook(lambda _, inputs, __: given.append(len(inputs[0])))
    found = []
    for frames in (4, 10, None):  # None is the plain way, channels first
        monkeypatch.setattr(encoder, "_part", frames)
        encoder.zero_grad()
        embedded = encoder(images)
        embedded.square().sum().backward()
        found.append((embedded.detach(), [p.grad for p in encoder.parameters()]))
    assert given == [4, 4, 2, 10, 10]
    for in_parts in found[:2]:
        torch.testing.assert_close(in_parts, found[2], rtol=1e-4, atol=1e-5)


@pytest.mark.semantics(29)
def test_bits_are_not_divided():
    space = Box(np.zeros((10, 10, 4), bool), np.ones((10, 10, 4), bool), dtype=np.bool_)
    seen = []
    encoder = Convolutions(space, 8)
    encoder.convolutions.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    encoder(torch.from_numpy(samples(space, 0, 1)).unsqueeze(0))
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}


def test_the_papers_convolutions_from_36_pixels_up():
    def layers(shape, **settings):
        encoder = Convolutions(Box(0, 255, shape, np.uint8), 8, **settings)
        found = [m for m in encoder.convolutions if isinstance(m, torch.nn.Conv2d)]
        return [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in found]

    nature = [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    assert layers((84, 84, 4)) == layers((36, 36)) == nature
    assert layers((35, 36)) == layers((84, 84), kind="small") == [(32, 3, 1), (64, 3, 1)]
    with pytest.raises(UnsupportedSpaceError, match=r"needs at least 36 pixels .*35 × 84"):
        layers((35, 84), kind="nature")


def test_images_may_be_read_as_numbers():
    space = Box(0, 255, (3, 2, 2), np.uint8)
    assert num_numbers(space) == 0
    assert num_numbers(space, "linear") == 12
    net = network(space, Discrete(2), image_encoder="linear")
    assert net.embed_state.in_features == 12
    memory = Box(0, 255, (128,), np.uint8)  # Atari's RAM is no image
    assert num_numbers(memory) == 128


# ---- what is refused


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Text(5), gym.spaces.Graph(Discrete(2), None), gym.spaces.Sequence(Discrete(2))],
)
def test_other_spaces_are_refused_by_name(space):
    for spaces in ((space, Discrete(2)), (Discrete(2), space)):
        with pytest.raises(UnsupportedSpaceError, match=f"{type(space).__name__} spaces are not"):
            network(*spaces)


@pytest.mark.parametrize(
    ("space", "values", "message"),
    [
        (Discrete(3, start=1), [1, 4, 2], "the observation 4 at step 1 lies outside Discrete"),
        (MultiDiscrete([2, 3]), [[0, 0], [1, 3], [0, 0]], r"the observation \[1 3\] at step 1"),
        (MultiBinary(2), [[0, 1], [1, 1], [0, 2]], r"the observation \[0 2\] at step 2"),
        (Discrete(3), [0.0, 0.5, 1.0], "the observation 0.5 at step 1"),
    ],
)
def test_observations_outside_of_their_categories_are_refused(space, values, message):
    episode = Episode(
        id="e",
        source="f",
        observations=np.array(values),
        actions=np.zeros(3, int),
        rewards=np.zeros(3),
        terminated=True,
        truncated=False,
    )
    with pytest.raises(DataError, match=message):
        episode.conform(space, Discrete(2))


# ---- the whole way


IMAGE = Box(0, 255, (38, 36, 3), np.uint8)
BITS = Box(np.zeros((6, 6, 2), bool), np.ones((6, 6, 2), bool), dtype=np.bool_)
PAIRS = {
    "categories": (Discrete(4, start=1), MultiDiscrete([3, 2])),
    "bits": (MultiBinary((2, 3)), MultiBinary(3)),
    "image": (IMAGE, Discrete(3, start=2)),
    "small image": (BITS, MultiDiscrete([[2, 3], [4, 2]])),
    "matrix": (Box(-1.0, 1.0, (2, 3)), Box(-2.0, 2.0, (2, 2))),
    "unbounded": (MultiDiscrete([2, 5]), Box(-np.inf, np.inf, (2,))),
}


@functools.cache
def recorded(name):
    """Random episodes of a pair of spaces, written once."""
    folder = tempfile.mkdtemp(prefix="dt-spaces-")
    observation_space, action_space = PAIRS[name]
    episodes = [
        dict(
            obs=samples(observation_space, length, length + 1),
            actions=samples(action_space, length, length),
            rewards=np.ones(length),
            terminated=True,
            truncated=False,
        )
        for length in (7, 5, 3, 6)
    ]
    write_episodes(episodes, f"{folder}/data", observation_space, action_space)
    return f"{folder}/data"


def space_config(name, **model):
    spaces = dict(zip(("observation_space", "action_space"), PAIRS[name], strict=True))
    return config_of(Sampled, spaces, recorded(name), **model)


@pytest.mark.parametrize("attention", ["context", pytest.param("window", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PAIRS)
def test_training_evaluation_and_restoring_work_in_every_space(cluster, tmp_path, name, attention):
    config = space_config(name, attention=attention)
    config.offline_data(validation_fraction=0.2)
    if attention == "window":
        config.env_runners(explore=True, gym_env_vectorize_mode="async")
        config.offline_data(pool_capacity_steps=15)
    check_the_whole_way(config, tmp_path)


@pytest.mark.parametrize(
    ("space", "logits", "values"),
    [
        (Discrete(3, start=1), [1.0, 0.0, -1.0], [1, 2, 3]),
        (MultiDiscrete([3, 1]), [1.0, 0.0, -1.0, 0.0], [0, 1, 2]),
        (MultiBinary(1), [1.0], [1, 0]),
    ],
)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(space, logits, values, temperature):
    head = action_head(space, tanh=True)
    outputs = torch.tensor(logits).expand(20_000, len(logits))
    torch.manual_seed(0)
    drawn = head.act(outputs, temperature=temperature).reshape(20_000, -1)[:, 0]
    of_values = [1.0, 0.0] if isinstance(space, MultiBinary) else [1.0, 0.0, -1.0]
    want = torch.softmax(torch.tensor(of_values) / temperature, 0)
    got = torch.tensor([(drawn == value).float().mean() for value in values])
    torch.testing.assert_close(got, want, atol=0.015, rtol=0)
    assert (head.act(outputs).reshape(20_000, -1)[:, 0] == values[0]).all()


@pytest.mark.parametrize(("temperature", "varies"), [(0.0, False), (None, True), (5.0, True)])
def test_evaluation_draws_at_its_temperature(cluster, temperature, varies):
    config = space_config("categories").env_runners(explore=True)
    config.evaluation(temperature=temperature)
    algo = config.build_algo()
    algo.evaluate()
    runner = algo.eval_env_runner_group.local_env_runner
    assert runner.module.temperature == (temperature or 1.0)
    runner.module.network.predict_action.weight.data.zero_()
    runner._compute_actions([0])
    taken = {tuple(runner._compute_actions([0])[0][0]) for _ in range(20)}
    assert (len(taken) > 1) is varies
    algo.stop()
