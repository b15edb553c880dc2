"""Dict and Tuple spaces, nested: values as trees, recordings in every format, networks, actions."""

import itertools
import json

import gymnasium as gym
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Text
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import nn

from rllib_dt import DT, DTConfig, DTModelConfig, Window, write_episodes
from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.policy.actor import Actor
from rllib_dt.spaces import composites
from rllib_dt.spaces.descriptions import describe_space, same_space, space_from_description
from rllib_dt.spaces.leaves import UnsupportedSpaceError
from rllib_dt.spaces.trees import (
    LeafChoice,
    at,
    by_leaf,
    column_names,
    columns_of,
    flatten,
    leaves,
    map_tree,
    unflatten,
)
from tests.conftest import TINY
from tests.environments import Masked, Sampled
from tests.recordings import read, refused
from tests.test_spaces import action_spaces, inside, network, observation_spaces, seeds
from tests.training import same, weights

K = 4
ROBOT = gym.spaces.Dict(
    camera=Box(0, 255, (6, 5, 3), np.uint8),
    joints=gym.spaces.Dict(position=Box(-2.0, 2.0, (3,)), grip=Discrete(3, start=1)),
    pair=gym.spaces.Tuple([MultiBinary(2), Box(-1.0, 1.0, ())]),
)
ARM = gym.spaces.Dict(
    move=Box(-2.0, 2.0, (2,)),
    rest=gym.spaces.Tuple([Discrete(3, start=2), gym.spaces.Dict(push=MultiDiscrete([2, 4]))]),
)
OBSERVED = ["camera", "joints/grip", "joints/position", "pair/0", "pair/1"]


def nested(inner):
    def inside(spaces):
        names = st.sampled_from(["a", "b", "items", "x.y", "type", "%", "Ünï"])
        return st.one_of(
            st.dictionaries(names, spaces, min_size=1, max_size=3).map(gym.spaces.Dict),
            st.lists(spaces, min_size=1, max_size=3).map(gym.spaces.Tuple),
        )

    return inside(st.recursive(inner, inside, max_leaves=4))


def batched(space, seed, steps):
    """`steps` values of a space as nested arrays, the way that gymnasium batches them."""
    space.seed(seed)
    values = [space.sample() for _ in range(steps)]
    return concatenate(space, values, create_empty_array(space, steps)), values


def equal(one, other):
    return all(by_leaf(map_tree(np.array_equal, one, other)).values())


def make(observation_space, action_space, lengths=(7, 5, 3, 6)):
    return [
        dict(
            obs=batched(observation_space, length, length + 1)[0],
            actions=batched(action_space, length + 100, length)[0],
            rewards=np.ones(length),
            terminated=True,
            truncated=False,
        )
        for length in lengths
    ]


# ---- trees


@settings(max_examples=60, deadline=None)
@given(nested(observation_spaces), seeds)
def test_values_become_trees_and_back(space, seed):
    space.seed(seed)
    value = space.sample()
    tree = flatten(space, value)
    assert list(tree) == list(leaves(space))
    back = unflatten(space, tree)
    assert equal(flatten(space, back), tree)
    assert columns_of("obs", dict(column_names("obs", tree))) == tree
    restored = space_from_description(json.loads(json.dumps(describe_space(space))))
    assert same_space(space, restored)
    assert list(leaves(restored)) == list(leaves(space))


def test_leaves_are_named_by_path_and_may_be_ignored():
    assert list(leaves(ROBOT)) == OBSERVED
    assert list(leaves(ROBOT, ["joints", "pair/1"])) == ["camera", "pair/0"]
    assert list(leaves(Discrete(2))) == [""]
    value = flatten(ROBOT, ROBOT.sample(), ["joints"])
    assert list(value) == ["camera", "pair/0", "pair/1"]


@pytest.mark.parametrize("change", [{"camera": None}, {"more": 1}])
def test_values_with_other_leaves_are_refused(change):
    value = {k: v for k, v in (ROBOT.sample() | change).items() if v is not None}
    with pytest.raises(ValueError, match="the value does not have the leaves"):
        flatten(ROBOT, value)


# ---- recordings


def steps_of(episode):
    """One row for each step of an episode, nested like the spaces, with lists for numbers."""
    length = len(episode["rewards"])
    observations = flatten(ROBOT, episode["obs"])
    actions = flatten(ARM, episode["actions"])
    for t in range(length):
        yield dict(
            obs=plain(ROBOT, at(observations, t)),
            actions=plain(ARM, at(actions, t)),
            rewards=1.0,
            terminateds=t == length - 1,
            truncateds=False,
        )


def plain(space, tree):
    """A nested value as a file holds it: dicts by name or number, and lists of numbers."""
    found = {}
    for path, leaf in tree.items():
        *parents, last = path.split("/")
        inner = found
        for name in parents:
            inner = inner.setdefault(name, {})
        inner[last] = np.asarray(leaf).tolist()
    return found


def write_canonical(folder, episodes):
    write_episodes(episodes, folder, ROBOT, ARM)
    return folder


def write_structs(folder, episodes):
    rows = [row for episode in episodes for row in steps_of(episode)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return folder / "a.parquet"


def write_flat_columns(folder, episodes):
    rows = [row for episode in episodes for row in steps_of(episode)]
    table = pa.Table.from_pylist(
        [{k: row[k] for k in row if k not in ("obs", "actions")} for row in rows]
    )
    for name, space in (("obs", ROBOT), ("actions", ARM)):
        for path in leaves(space):
            values = []
            for row in rows:
                value = row[name]
                for part in path.split("/"):
                    value = value[part]
                values.append(value)
            table = table.append_column(f"{name}/{path}", pa.array(values))
    pq.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


def write_lines_of_rows(folder, episodes):
    rows = [row for episode in episodes for row in steps_of(episode)]
    (folder / "a.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.json"


def write_lines_of_batches(folder, episodes):
    lines = []
    for episode in episodes:
        length = len(episode["rewards"])
        batch = dict(
            obs=plain(ROBOT, at(flatten(ROBOT, episode["obs"]), slice(length))),
            actions=plain(ARM, flatten(ARM, episode["actions"])),
            rewards=[1.0] * length,
            terminateds=[t == length - 1 for t in range(length)],
        )
        lines.append(json.dumps(batch) + "\n")
    (folder / "a.json").write_text("".join(lines))
    return folder / "a.json"


def write_hdf5(folder, episodes):
    with h5py.File(folder / "a.hdf5", "w") as file:
        for name, key, space in (("observations", "obs", ROBOT), ("actions", "actions", ARM)):
            parts = [at(flatten(space, e[key]), slice(len(e["rewards"]))) for e in episodes]
            joined = map_tree(lambda *arrays: np.concatenate(arrays), *parts)
            for path, array in joined.items():
                file[f"{name}/{path}"] = array
        ends = np.concatenate([np.arange(len(e["rewards"]))[::-1] == 0 for e in episodes])
        file["rewards"], file["terminals"] = np.ones(len(ends)), ends
        file["timeouts"] = np.zeros(len(ends), bool)
    return folder / "a.hdf5"


WRITERS = {
    "canonical": write_canonical,
    "structs": write_structs,
    "flat columns": write_flat_columns,
    "lines of rows": write_lines_of_rows,
    "lines of batches": write_lines_of_batches,
    "hdf5": write_hdf5,
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("ignore", [(), ("joints", "pair/1")], ids=["all", "some"])
def test_every_format_holds_trees(tmp_path, form, ignore):
    written = make(ROBOT, ARM)
    path = WRITERS[form](tmp_path, written)
    episodes = read(path, observed=LeafChoice(ignore=ignore)).episodes
    assert len(episodes) == len(written)
    for episode, want in zip(episodes, written, strict=True):
        checked = episode.conform(ROBOT, ARM, ignore=ignore)
        steps = slice(len(episode))
        assert equal(
            at(checked.observations, steps), at(flatten(ROBOT, want["obs"], ignore), steps)
        )
        assert equal(checked.actions, flatten(ARM, want["actions"]))


@settings(max_examples=20, deadline=None)
@given(nested(observation_spaces), nested(action_spaces), seeds)
def test_written_trees_read_back_exactly(tmp_path_factory, observation_space, action_space, seed):
    folder = tmp_path_factory.mktemp("trees")
    episodes = make(observation_space, action_space, (3, 1))
    write_episodes(episodes, folder, observation_space, action_space)
    for episode, want in zip(read(folder).episodes, episodes, strict=True):
        checked = episode.conform(observation_space, action_space)
        for space, got, given_value in (
            (observation_space, checked.observations, want["obs"]),
            (action_space, checked.actions, want["actions"]),
        ):
            for path, leaf in flatten(space, given_value).items():
                np.testing.assert_array_equal(got[path], leaf.astype(got[path].dtype))


def test_rllibs_episodes_of_dicts_are_read(tmp_path):
    space = gym.spaces.Dict(a=Box(-1.0, 1.0, (2,)), b=gym.spaces.Dict(c=Discrete(3)))
    import msgpack
    import msgpack_numpy

    rows, wanted = [], []
    for to_numpy in (False, True):
        _, values = batched(space, 3, 4)
        episode = SingleAgentEpisode(observation_space=space, action_space=Discrete(2))
        episode.add_env_reset(values[0])
        for t, value in enumerate(values[1:]):
            episode.add_env_step(value, t % 2, 1.0, terminated=t == 2)
        if to_numpy:
            episode.to_numpy()
        rows.append(msgpack.packb(episode.get_state(), default=msgpack_numpy.encode))
        wanted.append(values)
    pq.write_table(pa.table({"item": rows}), tmp_path / "a.parquet")
    for episode, values in zip(read(tmp_path / "a.parquet").episodes, wanted, strict=True):
        checked = episode.conform(space, Discrete(2))
        want = map_tree(lambda *arrays: np.stack(arrays), *(flatten(space, v) for v in values))
        assert equal(checked.observations, want)


def test_a_leaf_missing_in_some_rows_or_files_is_named(tmp_path):
    rows = [row for episode in make(ROBOT, ARM) for row in steps_of(episode)]
    rows[3]["obs"]["joints"]["grip"] = None
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    with refused("a.parquet: column 'obs/joints/grip' has 1 missing values, the first in row 3"):
        read(tmp_path / "a.parquet")
    rows[3]["obs"].pop("joints")
    (tmp_path / "b.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with refused(r"b.json: 'obs' has the leaves .*joints.* in its first step, but .* in step 3"):
        read(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, a: o.pop("pair/0"), r"observations have no leaf 'pair/0' but the leaves \["),
        (lambda o, a: a.pop("rest/0"), "actions have no leaf 'rest/0' but the leaves"),
        (
            lambda o, a: o.update({"camera": np.zeros((3, 5, 6, 3), np.uint8)}),
            r"observations/camera have the shape \(5, 6, 3\) at each step, but the space is Box",
        ),
        (
            lambda o, a: o.update({"camera": np.full((3, 6, 5, 3), 0.5)}),
            "observations/camera at step 0 hold 0.5, which the space's uint8 cannot hold",
        ),
        (
            lambda o, a: o.update({"joints/grip": np.array([1, 4, 2])}),
            r"the observation 4 at step 1 lies outside Discrete.*leaf 'joints/grip'",
        ),
        (
            lambda o, a: a.update({"move": np.array([[0, 0], [0, 3.0], [0, 0]])}),
            r"the action \[0. 3.\] at step 1 lies outside Box.*leaf 'move'",
        ),
        (
            lambda o, a: o.update({"joints/position": np.full((3, 3), np.nan)}),
            "observations/joints/position at step 0 are",
        ),
    ],
)
def test_what_does_not_fit_a_leaf_is_named(change, message):
    observations = dict(flatten(ROBOT, batched(ROBOT, 0, 3)[0]))
    actions = dict(flatten(ARM, batched(ARM, 0, 3)[0]))
    change(observations, actions)
    with pytest.raises(DataError, match=f"f, episode e: {message}"):
        Episode(
            id="e",
            source="f",
            observations=observations,
            actions=actions,
            rewards=np.zeros(3),
            terminated=True,
            truncated=False,
        ).conform(ROBOT, ARM)


def test_a_single_array_is_no_composite_and_the_other_way_round():
    parts = dict(id="e", source="f", rewards=np.zeros(3), terminated=True, truncated=False)
    flat = Episode(observations=np.zeros((3, 2)), actions=np.zeros(3), **parts)
    with pytest.raises(DataError, match="observations have no leaf 'camera' but a single array"):
        flat.conform(ROBOT, Discrete(2))
    trees = Episode(observations={"a": np.zeros((3, 2))}, actions=np.zeros(3), **parts)
    with pytest.raises(DataError, match=r"observations have the leaves \['a'\]; check that"):
        trees.conform(Box(-1, 1, (2,)), Discrete(2))


# ---- networks


def windows(observation_space, action_space, seed, batch=3):
    """Windows whose first row is padded by 2 steps."""

    def column(space, seed):
        tree = flatten(space, batched(space, seed, batch * K)[0])
        return map_tree(lambda a: torch.from_numpy(a).reshape(batch, K, *a.shape[1:]), tree)

    mask = torch.ones(batch, K, dtype=torch.bool)
    mask[0, :2] = False
    return Window(
        observations=column(observation_space, seed),
        actions=column(action_space, seed + 1),
        returns_to_go=torch.randn(batch, K, 1, generator=torch.Generator().manual_seed(seed)),
        timesteps=torch.arange(K).expand(batch, K) * mask,
        mask=mask,
    )


@pytest.mark.semantics(14, 15)
@settings(max_examples=30, deadline=None)
@given(nested(observation_spaces), nested(action_spaces), seeds)
def test_padding_changes_nothing_and_actions_are_legal(observation_space, action_space, seed):
    net = network(observation_space, action_space)
    window = windows(observation_space, action_space, seed)
    other = window.map(torch.clone)
    for tree in (other.observations, other.actions):
        for leaf in by_leaf(tree).values():
            leaf[0, :2] = 0
    outputs = [net.predict(w, only_actions=True).action_outputs for w in (window, other)]
    torch.testing.assert_close(outputs[0][1:], outputs[1][1:])
    torch.testing.assert_close(outputs[0][0, 2:], outputs[1][0, 2:])
    head = net.action_head
    total = head.loss_sum(outputs[0], window.actions, window.mask)
    sums = head.metric_sums(outputs[0], window.actions, window.mask)
    assert set(sums) == set(head.metric_names)
    torch.testing.assert_close(
        total, sum(v for name, v in sums.items() if name.startswith("action_loss/"))
    )
    for sample in (False, True):
        taken = net.act(window, sample=sample)
        for path, space in leaves(action_space).items():
            assert all(inside(space, value) for value in taken[path].numpy())


def test_the_state_token_is_the_sum_of_the_leaves():
    net = network(ROBOT, ARM)
    window = windows(ROBOT, ARM, 0)
    net.set_normalization(
        {"joints/position": torch.tensor([1.0, 2.0, 3.0]), "pair/1": torch.tensor(0.5)},
        {"joints/position": torch.tensor([1.0, 2.0, 4.0]), "pair/1": torch.tensor(2.0)},
        3.0,
    )
    assert net.observation_mean.tolist() == [1, 2, 3, 0.5]
    encoders = dict(zip(OBSERVED, net.embed_state.encoders.values(), strict=True))
    seen = dict(window.observations)
    seen["joints/position"] = (seen["joints/position"] - torch.tensor([1.0, 2, 3])) / torch.tensor(
        [1.0, 2, 4]
    )
    seen["pair/1"] = ((seen["pair/1"] - 0.5) / 2)[..., None]
    want = sum(encoders[path](seen[path]) for path in OBSERVED)
    got = net.embed_state(net._normalized(window.observations, 3, K))
    torch.testing.assert_close(got, want)
    assert net.predict(window).state_preds.shape == (3, K, 4)


def test_one_leaf_in_a_dict_computes_what_the_leaf_alone_does():
    """The same weights under another name."""
    space, actions = Box(-1.0, 1.0, (3,)), Discrete(3)
    alone = network(space, actions)
    wrapped = network(gym.spaces.Dict(a=space), gym.spaces.Dict(b=actions))
    state = {
        name.replace("embed_state.", "embed_state.encoders./a."): value
        for name, value in alone.state_dict().items()
    }
    wrapped.load_state_dict(state)
    window = windows(space, actions, 0)
    inside = Window(
        observations={"a": window.observations},
        actions={"b": window.actions},
        returns_to_go=window.returns_to_go,
        timesteps=window.timesteps,
        mask=window.mask,
    )
    assert torch.equal(alone.predict(window).action_outputs, wrapped.predict(inside).action_outputs)


# ---- which actions are legal

LEGAL = gym.spaces.Dict(action_mask=MultiBinary(5), seen=Box(-1.0, 1.0, (3,)))


@pytest.mark.parametrize("actions", [Discrete(5, start=2), MultiDiscrete([2, 3], start=[1, 0])])
def test_forbidden_actions_have_no_probability(actions):
    net = network(LEGAL, actions)
    window = windows(LEGAL, actions, 0)
    # what is recorded is legal, and of each category one more value at most
    mask = net.action_head.features(window.actions)
    window.observations["action_mask"].copy_(mask)
    out = net.predict(window, only_actions=True).action_outputs
    probabilities = out.masked_fill(mask != 0, -1e30).exp()
    assert not probabilities.any()
    # only one value is legal: the loss is zero, and so is the accuracy's miss
    losses = net.action_head.losses(out, window.actions)
    assert torch.equal(losses, torch.zeros_like(losses))
    for sample in (False, True):
        assert torch.equal(net.act(window, sample=sample), window.actions[:, -1])
    # the mask itself is no input
    assert list(net.embed_state.encoders) == ["/seen"]
    window.observations["action_mask"].zero_()  # allows nothing, as in padding
    assert net.predict(window).action_outputs.isfinite().all()
    assert net.predict(window).action_outputs.abs().max() < 1e3


def test_a_recorded_action_that_its_mask_forbids_is_refused():
    masks = np.ones((4, 5), np.int8)
    masks[2, 3] = 0
    parts = dict(id="e", source="f", rewards=np.zeros(4), terminated=True, truncated=False)
    observations = {"action_mask": masks, "seen": np.zeros((4, 3))}
    episode = Episode(observations=observations, actions=np.array([2, 3, 5, 6]), **parts)
    message = r"the action 5 at step 2 is forbidden by its action_mask \[1 1 1 0 1\]; .*ignore="
    with pytest.raises(DataError, match=message):
        episode.conform(LEGAL, Discrete(5, start=2))
    episode.conform(LEGAL, Discrete(5, start=2), ignore=["action_mask"])
    multi = Episode(observations=observations, actions=np.array([[0, 0]] * 4), **parts)
    multi.conform(LEGAL, MultiDiscrete([2, 3]))
    multi = Episode(observations=observations, actions=np.array([[0, 1]] * 4), **parts)
    with pytest.raises(DataError, match=r"the action \[0 1\] at step 2 is forbidden"):
        multi.conform(LEGAL, MultiDiscrete([2, 3]))


@pytest.mark.parametrize(
    ("observations", "actions", "ignore", "message"),
    [
        (gym.spaces.Dict(a=Discrete(2), mission=Text(9)), Discrete(2), (), "leaf 'mission': Text"),
        (gym.spaces.Dict(a=gym.spaces.Sequence(Discrete(2))), Discrete(2), (), "leaf 'a': Sequ"),
        (LEGAL, Box(-1, 1, (2,)), (), "leaf 'action_mask' says which actions are legal, but the"),
        (
            LEGAL,
            Discrete(4),
            (),
            r"it is MultiBinary\(5\), but the actions are Discrete\(4\), of 4",
        ),
        (LEGAL, Discrete(5), ("sen",), r"have no leaf 'sen'; .* has \['action_mask', 'seen'\]"),
        (LEGAL, Discrete(5), ("seen",), "no leaf of .* is left to observe"),
        (Discrete(2), Discrete(5), ("seen",), "have no leaf 'seen'; .* has no leaves"),
        (gym.spaces.Dict({"a/b": Discrete(2)}), Discrete(2), (), r"names \['a/b'\] of leaves"),
        (Discrete(2), gym.spaces.Dict(a=Text(3)), (), "leaf 'a': Text spaces .* as actions"),
        (Discrete(2), gym.spaces.Dict({}), (), "has no leaf to act in"),
    ],
)
def test_spaces_that_cannot_be_used_are_refused_by_leaf(observations, actions, ignore, message):
    with pytest.raises(UnsupportedSpaceError, match=message):
        composites.check_spaces(observations, actions, LeafChoice(ignore=ignore))
    config = DTConfig().environment(observation_space=observations, action_space=actions)
    config.offline_data(input_="nowhere").rl_module(model_config={"ignore": list(ignore)})
    with pytest.raises(ValueError, match=message):
        config.validate()


# ---- encoders of one's own


class Letters(nn.Module):
    """Adds up embeddings of a text's bytes; zeros are padding."""

    def __init__(self, space, width):
        super().__init__()
        assert isinstance(space, Text)
        self.table = nn.Embedding(256, width)
        nn.init.constant_(self.table.weight, 0.5)

    def forward(self, values):
        letters = values.long()
        return (self.table(letters) * (letters != 0)[..., None]).sum(dim=-2)


class Raw(nn.Module):
    def __init__(self, space, width):
        super().__init__()
        self.linear = nn.Linear(int(np.prod(space.shape)), width)

    def forward(self, values):
        return self.linear(values.flatten(2).float())


class Flat(Raw):
    def forward(self, values):
        return super().forward(values)[:, 0]


def make_something(space, width):
    return "no module"


NAMED = "tests.test_composites."
SPOKEN = gym.spaces.Dict(seen=Box(-1.0, 1.0, (2, 2)), words=Text(6, charset="abcö "))


def test_an_encoder_of_ones_own_reads_raw_values_and_keeps_its_weights():
    own = {"words": Letters, "seen": NAMED + "Raw"}
    net = network(SPOKEN, Discrete(2), encoders=own)
    assert net.config.encoders == {"words": NAMED + "Letters", "seen": NAMED + "Raw"}
    assert len(net.observation_mean) == 0  # nothing is normalised
    letters = net.embed_state.encoders["/words"].module
    assert (letters.table.weight == 0.5).all()  # as its constructor left it
    tree = {
        "seen": torch.ones(1, 1, 2, 2),
        "words": torch.tensor([[[97, 98, 0, 0] + [0] * 8]], dtype=torch.uint8),
    }
    raw = net.embed_state.encoders["/seen"].module
    want = raw(tree["seen"]) + 2 * letters.table.weight[0]
    torch.testing.assert_close(net.embed_state(tree), want)
    alone = network(Box(0.0, 1.0, (3,)), Discrete(2), encoders={"": Raw})
    assert isinstance(alone.embed_state.module, Raw)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"words": "nowhere.Encoder"}, "'nowhere.Encoder' cannot be imported .No module"),
        ({"words": NAMED + "Nothing"}, "Nothing' cannot be imported .module .* has no attribute"),
        ({"words": "Encoder"}, "'Encoder' cannot be imported by other processes; define"),
        ({"wrds": NAMED + "Letters"}, r"no leaf 'wrds' that is not ignored; .*\['seen', 'words'\]"),
        ({"words": 3}, "must be a dict from paths of leaves to the names"),
        (["words"], "must be a dict from paths to encoders"),
        ({"seen": NAMED + "Raw"}, "leaf 'words': Text spaces .*ignore=.*or give it an encoder"),
    ],
)
def test_encoders_that_cannot_be_used_are_refused(own, message):
    config = DTConfig().environment(observation_space=SPOKEN, action_space=Discrete(2))
    config.offline_data(input_="nowhere").rl_module(model_config={"encoders": own})
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_what_an_encoder_returns_is_checked():
    with pytest.raises(ValueError, match=r"make_something made a str, no torch.nn.Module"):
        network(SPOKEN, Discrete(2), ignore=["words"], encoders={"seen": NAMED + "make_something"})
    net = network(SPOKEN, Discrete(2), ignore=["words"], encoders={"seen": Flat})
    message = r"Flat returned \(3, 16\) for values of shape \(3, 4, 2, 2\), wanted \(3, 4, 16\)"
    with pytest.raises(ValueError, match=message):
        net.predict(windows(gym.spaces.Dict(seen=SPOKEN["seen"]), Discrete(2), 0))


def spoken_rows():
    SPOKEN.seed(0)
    rows = []
    for length in (5, 7, 3):
        for t in range(length):
            value = SPOKEN.sample()
            rows.append(
                dict(
                    obs={"seen": value["seen"].tolist(), "words": value["words"]},
                    actions=t % 2,
                    rewards=1.0,
                    terminateds=t == length - 1,
                )
            )
    return rows


def write_spoken(folder, form):
    rows = spoken_rows()
    if form == "json":
        (folder / "a.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "structs":
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    elif form == "columns":
        flat = [row | {f"obs/{k}": v for k, v in row["obs"].items()} for row in rows]
        table = pa.Table.from_pylist(flat).drop_columns(["obs"])
        pq.write_table(table, folder / "a.parquet")
    else:
        ends = [-1] + [i for i, row in enumerate(rows) if row["terminateds"]]
        episodes = [rows[a + 1 : b + 1] for a, b in itertools.pairwise(ends)]
        write_episodes(
            [
                dict(
                    obs=[row["obs"] for row in episode],
                    actions=[row["actions"] for row in episode],
                    rewards=[1.0] * len(episode),
                    terminated=True,
                    truncated=False,
                )
                for episode in episodes
            ],
            folder,
            SPOKEN,
            Discrete(2),
        )
    return folder


@pytest.mark.parametrize("form", ["json", "structs", "columns", "canonical"])
def test_text_travels_as_padded_bytes(tmp_path, form):
    path = write_spoken(tmp_path, form)
    episodes = read(path, observed=LeafChoice(texts=("words",))).episodes
    words = [row["obs"]["words"] for row in spoken_rows()]
    got = []
    for episode in episodes:
        checked = episode.conform(SPOKEN, Discrete(2)).observations["words"]
        assert (checked.dtype, checked.shape[1:]) == (np.uint8, (12,))
        got += [bytes(row).rstrip(b"\0").decode() for row in checked]
    assert got == words
    if form != "canonical":
        with refused("words.* holds text or bytes|words.* holds values that are not numbers"):
            read(path)
        short = gym.spaces.Dict(seen=SPOKEN["seen"], words=Text(1, charset="a"))
        with pytest.raises(DataError, match=r"observations/words: the text .* is longer than Text"):
            episodes[0].conform(short, Discrete(2))
        numbers = gym.spaces.Dict(seen=SPOKEN["seen"], words=Box(0, 1, ()))
        with pytest.raises(DataError, match="observations/words hold text, but the space is Box"):
            episodes[0].conform(numbers, Discrete(2))


@pytest.mark.parametrize("attention", ["context", "window"])
def test_an_encoder_of_ones_own_trains_saves_and_evaluates(cluster, tmp_path, attention):
    spaces = {"observation_space": SPOKEN, "action_space": Discrete(2)}
    (tmp_path / "data").mkdir()
    data = write_spoken(tmp_path / "data", "structs")
    own = {"words": NAMED + "Letters"}
    config = config_of(Sampled, spaces, data, attention=attention, encoders=own)
    algo = config.build_algo()
    before = weights(algo)["embed_state.encoders./words.module.table.weight"]
    algo.train()
    kept = weights(algo)
    assert not torch.equal(kept["embed_state.encoders./words.module.table.weight"], before)
    evaluated = algo.evaluate()["env_runners"]
    assert (evaluated["num_episodes"], evaluated["num_episodes_failed"]) == (3, 0)
    path = algo.save_to_path(tmp_path / "checkpoint")
    algo.stop()
    restored = DT.from_checkpoint(path)
    assert same(weights(restored), kept)
    restored.train()
    restored.stop()


# ---- the whole way

WITH_TEXT = gym.spaces.Dict(robot=ROBOT, mission=Text(12))


def config_of(env, spaces, data, **model):
    return (
        DTConfig()
        .environment(env, env_config=spaces)
        .offline_data(input_=str(data), dataset_num_iters_per_learner=2)
        .rl_module(model_config=DTModelConfig(**(TINY | model)))
        .training(train_batch_size_per_learner=4, lr=1e-3)
        .env_runners(num_envs_per_env_runner=2)
        .evaluation(target_returns=[7.0], evaluation_duration=3)
        .debugging(seed=0)
    )


@pytest.mark.parametrize("attention", ["context", "window"])
@pytest.mark.parametrize("with_text", [False, True], ids=["", "ignored text"])
def test_training_evaluation_and_restoring_work(cluster, tmp_path, attention, with_text):
    write_episodes(make(ROBOT, ARM), tmp_path / "data", ROBOT, ARM)
    space, ignore, data = ROBOT, (), tmp_path / "data"
    if with_text:
        space, ignore = WITH_TEXT, ["mission", "robot/pair"]
        rows = [row for episode in make(ROBOT, ARM) for row in steps_of(episode)]
        rows = [row | {"obs": {"robot": row["obs"], "mission": "go there"}} for row in rows]
        data = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), data)
    spaces = {"observation_space": space, "action_space": ARM}
    config = config_of(Sampled, spaces, data, attention=attention, ignore=ignore)
    config.offline_data(validation_fraction=0.2, actions_in_input_normalized=False)
    if attention == "window":
        config.env_runners(explore=True, gym_env_vectorize_mode="async")
        config.offline_data(pool_capacity_steps=15)
    algo = config.build_algo()
    assert algo.offline_data.summary.action_shape == {
        "move": (2,),
        "rest/0": (),
        "rest/1/push": (2,),
    }
    result = algo.train()
    assert np.isfinite(result["learners"]["default_policy"]["action_loss"])
    validation = result["validation"]
    parts = [validation[f"action_loss/{path}"] for path in leaves(ARM)]
    assert validation["action_loss"] == pytest.approx(sum(parts), rel=1e-5)
    evaluated = algo.evaluate()["env_runners"]
    assert (evaluated["num_episodes"], evaluated["num_episodes_failed"]) == (3, 0)
    assert evaluated["episode_return_mean"] == Sampled.STEPS
    path, kept = algo.save_to_path(tmp_path / "checkpoint"), weights(algo)
    algo.stop()
    restored = DT.from_checkpoint(path)
    assert same(weights(restored), kept)
    restored.train()
    restored.stop()


@pytest.mark.slow
def test_two_learners_train_on_composites(cluster, tmp_path):
    write_episodes(make(ROBOT, ARM), tmp_path / "data", ROBOT, ARM)
    spaces = {"observation_space": ROBOT, "action_space": ARM}
    config = config_of(Sampled, spaces, tmp_path / "data").learners(num_learners=2)
    config.offline_data(actions_in_input_normalized=False)
    algo = config.build_algo()
    algo.train()
    states = algo.learner_group.foreach_learner(
        lambda learner: {k: v.clone() for k, v in learner.network.state_dict().items()}
    )
    assert same(*(state.get() for state in states))
    algo.stop()


def masked_episodes():
    env, episodes = Masked({}), []
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        seen, actions, ended = [observation], [], False
        while not ended:
            actions.append(2 + int(np.flatnonzero(observation["action_mask"])[0]))
            observation, _, ended, *_ = env.step(actions[-1])
            seen.append(observation)
        episodes.append(
            dict(
                obs=seen,
                actions=actions,
                rewards=np.ones(len(actions)),
                terminated=True,
                truncated=False,
            )
        )
    return episodes


@pytest.mark.parametrize("attention", ["context", pytest.param("window", marks=pytest.mark.slow)])
def test_an_illegal_action_is_never_taken(cluster, tmp_path, attention):
    """10,000 steps in all: 40 episodes through RLlib, and 4 times 2,000 steps without it."""
    env = Masked({})
    write_episodes(masked_episodes(), tmp_path, env.observation_space, env.action_space)
    config = config_of(Masked, {}, tmp_path, attention=attention, context_length=3)
    config.evaluation(target_returns=[50.0], evaluation_duration=20).env_runners(explore=True)
    algo = config.build_algo()
    first = algo.train()["learners"]["default_policy"]["action_loss"]
    assert np.isfinite(first)
    evaluated = algo.evaluate()["env_runners"]
    assert (evaluated["num_episodes"], evaluated["num_episodes_failed"]) == (20, 0)
    net = algo.get_module().network
    algo.stop()
    for sample in (False, True):
        actor = Actor(net, 50.0, sample=sample)
        observation, _ = env.reset(seed=5)
        reward = 0.0
        for _ in range(2000):
            batch = {name: leaf[None] for name, leaf in observation.items()}
            action = actor.predict(batch, reward)
            observation, reward, ended, *_ = env.step(action[0])
            if ended:
                actor.reset()
                observation, _ = env.reset()


def test_an_actor_plays_the_episodes_of_rllibs_evaluation(cluster, tmp_path):
    write_episodes(make(ROBOT, ARM), tmp_path, ROBOT, ARM)
    spaces = {"observation_space": ROBOT, "action_space": ARM}
    config = config_of(Sampled, spaces, tmp_path).offline_data(actions_in_input_normalized=False)
    algo = config.build_algo()
    net = algo.get_module().network
    algo.stop()
    actor = Actor(net, 7.0, num_envs=2)
    envs = [Sampled(spaces) for _ in range(2)]
    observations = [env.reset(seed=seed)[0] for seed, env in enumerate(envs)]
    rewards = np.zeros(2)
    for _ in range(Sampled.STEPS):
        batch = concatenate(ROBOT, observations, create_empty_array(ROBOT, 2))
        actions = flatten(ARM, actor.predict(batch, rewards))
        results = [env.step(unflatten(ARM, at(actions, slot))) for slot, env in enumerate(envs)]
        observations = [result[0] for result in results]
        rewards = np.array([result[1] for result in results])
    assert all(result[2] for result in results)
