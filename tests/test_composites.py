"""Dict and Tuple spaces, nested: values as trees, recordings in every format, networks."""

import gc
import json

import gymnasium as gym
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Text
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import given, settings
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_dt import Window, write_episodes
from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.policy.actor import Actor
from rllib_dt.rollout.environments import InProcessEnvs, SubprocessEnvs
from rllib_dt.spaces.descriptions import describe_space, same_space, space_from_description
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
from tests.composites import (
    ARM,
    OBSERVED,
    ROBOT,
    K,
    batched,
    check_the_whole_way,
    config_of,
    equal,
    make,
    nested,
    windows,
)
from tests.environments import Sampled
from tests.recordings import read, refused, write_states
from tests.test_spaces import action_spaces, inside, network, observation_spaces, seeds
from tests.training import same

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


@pytest.mark.parametrize("form", ["structs", "flat columns", "lines of rows", "hdf5"])
def test_leaves_that_are_not_wanted_are_not_looked_at(tmp_path, form):
    """Neither text nor gaps in them matter, whether the space lacks them or they are ignored."""
    path = WRITERS[form](tmp_path, make(ROBOT, ARM))
    if form == "hdf5":
        with h5py.File(path, "r+") as file:
            file["observations/said/word"] = ["go"] * 21
    elif form == "lines of rows":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows[::2]:
            row["obs"]["said"] = {"word": "go"}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table = pq.read_table(path)
        said = [{"word": None if t % 2 else "go"} if t % 3 else None for t in range(len(table))]
        if form == "structs":
            pairs = zip(table["obs"].to_pylist(), said, strict=True)
            rows = [row | {"said": word} for row, word in pairs]
            table = table.set_column(table.column_names.index("obs"), "obs", pa.array(rows))
        else:
            table = table.append_column("obs/said", pa.array(said))
            empty = pa.nulls(len(table), pa.float64())
            for name in ("new_obs/camera", "new_obs/pair/0"):  # recorded, but never filled
                table = table.append_column(name, empty)
            table = table.append_column("t/x", pa.array(["else"] * len(table)))
        pq.write_table(table, path)
    wanted = LeafChoice(only=tuple(leaves(ROBOT)))
    for choice in (wanted, LeafChoice(ignore=("said",))):
        episodes = read(path, observed=choice).episodes
        assert [len(episode) for episode in episodes] == [7, 5, 3, 6]
        assert list(episodes[0].conform(ROBOT, ARM).observations) == OBSERVED


def test_sequences_may_be_lists_or_tuples_where_the_space_is_no_tuple(tmp_path):
    pairs = gym.spaces.Dict(p=Box(-1.0, 1.0, (2,)))
    both = gym.spaces.Tuple([pairs["p"], Discrete(2)])
    steps = [(0.5, 0.25)] * 4
    for number, (space, obs, actions, acted) in enumerate(
        [
            (pairs["p"], steps, (0, 1, 0), Discrete(2)),
            (pairs["p"], tuple(map(np.array, steps)), [(0, 1)] * 3, MultiDiscrete([2, 2])),
            (pairs, {"p": steps}, [0, 1, 0], Discrete(2)),
            (pairs, [{"p": step} for step in steps], [0, 1, 0], Discrete(2)),
            (Text(3), ("a", "b", "c", "d"), [0, 1, 0], Discrete(2)),
            (
                both,
                [(s, 1) for s in steps],
                [0] * 3,
                Discrete(2),
            ),
            (both, (steps, [1] * 4), [0] * 3, Discrete(2)),
        ]
    ):
        episode = dict(obs=obs, actions=actions, rewards=[1] * 3, terminated=True, truncated=False)
        write_episodes([episode], tmp_path / str(number), space, acted)
        (got,) = read(tmp_path / str(number)).episodes
        assert len(got) == 3, number
        got.conform(space, acted)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"obs": [{"a/b": 1.0, "a": {"b": 2.0}}] * 2}, "column 'obs' has two leaves 'a/b'"),
        ({"rewards": [{"r": 1.0}] * 2}, r"rewards have the leaves \['r'\]; record one number"),
        ({"terminateds": [{"r": True}] * 2}, r"terminateds have the leaves \['r'\]"),
    ],
)
def test_columns_that_cannot_be_trees_are_refused(tmp_path, rows, message):
    good = {"obs": [{"a": 1.0}] * 2, "actions": [0, 1], "rewards": [1.0, 1.0]}
    table = pa.table(good | {"terminateds": [False, True]} | rows)
    pq.write_table(table, tmp_path / "a.parquet")
    with refused(f"a.parquet: {message}"):
        read(tmp_path / "a.parquet")


def test_columns_without_a_leaf_that_is_read_are_refused(tmp_path):
    path = write_flat_columns(tmp_path, make(ROBOT, ARM))
    with refused("a.parquet: columns .'obs'. are missing"):
        read(path, observed=LeafChoice(only=("other",)))
    path = write_lines_of_rows(tmp_path, make(ROBOT, ARM))
    with refused("a.json: obs have no leaf that is read"):
        read(path, observed=LeafChoice(only=("other",)))


@pytest.mark.slow
def test_groups_that_are_linked_in_many_ways_are_refused_soon(tmp_path):
    path = WRITERS["hdf5"](tmp_path, make(ROBOT, ARM))
    with h5py.File(path, "r+") as file:
        for depth in range(12):
            group = file.create_group(f"g{depth}")
            for link in range(8):
                group[f"l{link}"] = h5py.SoftLink(f"/g{depth + 1}")
        file.create_group("g12")
        file["observations/x"] = h5py.SoftLink("/g0")
    with refused("a.hdf5: 'observations' holds too many objects"):
        read(path)
    read(path, observed=LeafChoice(only=tuple(leaves(ROBOT))))


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


@pytest.mark.parametrize("finalised", [False, True])
def test_tuples_in_rllibs_serialised_episodes_are_refused_by_name(tmp_path, finalised):
    space = gym.spaces.Tuple([Box(-1.0, 1.0, (2,)), Discrete(3)])
    episode = SingleAgentEpisode(
        observations=[(np.zeros(2, np.float32), 1)] * 4,
        observation_space=space,
        actions=[0] * 3,
        action_space=Discrete(2),
        rewards=[1.0] * 3,
        terminated=True,
        len_lookback_buffer=0,
    )
    state = (episode.to_numpy() if finalised else episode).get_state()
    write_states(tmp_path / "a.parquet", [state])
    with refused("row 0 .*observations are not numbers, or have several shapes; those of a Tuple"):
        read(tmp_path / "a.parquet")


def test_leaves_beside_a_struct_of_leaves_are_refused(tmp_path):
    rows = [row for episode in make(ROBOT, ARM) for row in steps_of(episode)]
    table = pa.Table.from_pylist([row | {"obs/camera": row["obs"]["camera"]} for row in rows])
    pq.write_table(table, tmp_path / "a.parquet")
    observed = LeafChoice(only=tuple(leaves(ROBOT)))
    with refused(
        r"column 'obs' is a struct of leaves, and \['obs/camera'\] are leaves too; remove"
    ):
        read(tmp_path / "a.parquet", observed=observed)
    others = table.rename_columns(
        ["obs/unknown" if name == "obs/camera" else name for name in table.column_names]
    )
    pq.write_table(others, tmp_path / "a.parquet")
    read(tmp_path / "a.parquet", observed=observed)


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
    for temperature in (0.0, 1.0):
        taken = net.act(window, temperature=temperature)
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
    got = net.embed_observations(window.observations)
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


# ---- the whole way

WITH_TEXT = gym.spaces.Dict(robot=ROBOT, mission=Text(12))


class Changing(gym.Env):
    """Returns a text that grows, and constants beside it; a list stands for the tuple."""

    observation_space = gym.spaces.Dict(
        a=Box(-1.0, 1.0, (2,)),
        many=gym.spaces.Sequence(Discrete(3)),
        m=Text(9),
        z=gym.spaces.Tuple([Box(-1.0, 1.0, ())]),
    )
    action_space = Discrete(2)

    def __init__(self, config=None):
        self.t = 0

    def observe(self):
        a, z = np.full(2, 0.5, np.float32), np.float32(-0.5)
        return {"a": a, "m": "abcdefghi"[: self.t + 1], "many": (1,) * self.t, "z": [z]}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        return self.observe(), 1.0, self.t == 7, False, {}


@pytest.mark.parametrize("kind", [InProcessEnvs, SubprocessEnvs])
def test_every_leaf_arrives_as_the_environment_returned_it(kind):
    envs = kind([Changing] * 2, 20.0, Changing.observation_space)
    for slot, result in envs.reset({0: 0, 1: 1}):
        assert result.observation["m"] == "a", slot
    for t in range(1, 4):
        gc.collect()
        for _, result in envs.step({0: 0, 1: 0}):
            seen = result.observation
            assert (seen["m"], len(seen["many"])) == ("abcdefghi"[: t + 1], t)
            assert isinstance(seen["z"], tuple)
            assert (seen["a"].tolist(), float(seen["z"][0])) == ([0.5, 0.5], -0.5)
    envs.vector.close()


class WithMore(Changing):
    """Returns leaves that its space does not have."""

    def observe(self):
        seen = super().observe()
        return {**seen, "more": 3.0, "z": list(seen["z"])}


@pytest.mark.parametrize("kind", [InProcessEnvs, SubprocessEnvs])
def test_leaves_that_are_not_in_the_space_are_left_out(kind):
    envs = kind([WithMore], 20.0, Changing.observation_space)
    ((_, result),) = envs.reset({0: 0})
    assert set(result.observation) == set(Changing.observation_space.spaces)
    ((_, result),) = envs.step({0: 0})
    assert set(result.observation) == set(Changing.observation_space.spaces)
    envs.vector.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_leaves_that_rllib_cannot_batch_may_be_ignored(cluster, tmp_path, mode):
    written = gym.spaces.Dict(a=Box(-1.0, 1.0, (2,)), z=gym.spaces.Tuple([Box(-1.0, 1.0, ())]))
    write_episodes(make(written, Discrete(2)), tmp_path, written, Discrete(2))
    config = config_of(Changing, {}, tmp_path, ignore=["many", "m"])
    algo = config.env_runners(gym_env_vectorize_mode=mode).build_algo()
    algo.train()
    evaluated = algo.evaluate()["env_runners"]
    assert (evaluated["num_episodes"], evaluated["num_episodes_failed"]) == (3, 0)
    algo.stop()


@pytest.mark.parametrize("attention", ["context", pytest.param("window", marks=pytest.mark.slow)])
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
    result, summary = check_the_whole_way(config, tmp_path)
    assert summary.action_shape == {"move": (2,), "rest/0": (), "rest/1/push": (2,)}
    validation = result["validation"]
    parts = [validation[f"action_loss/{path}"] for path in leaves(ARM)]
    assert validation["action_loss"] == pytest.approx(sum(parts), rel=1e-5)


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
