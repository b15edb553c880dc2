"""Invalid values and episodes are refused with an error that names the episode and the fix."""

import re

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from rllib_dt import write_episodes
from rllib_dt.episodes.episode import DataError
from tests import recordings as rec
from tests.conftest import tiny_config
from tests.recordings import ACTIONS, OBSERVATIONS, arrays, read, refused, rows

FORMATS = ["a.parquet", "a.hdf5", "a.json", "a.json.gz", "a.zip"]


# ---- values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["obs", "actions", "rewards"])
def test_the_error_for_non_finite_values_names_file_episode_and_step(tmp_path, name, value):
    bad = arrays(3, 7)
    bad[name][4] = value
    long = {"obs": "observations"}.get(name, name)
    want = rf"{long} at step 4 are .*{value}.*; remove the episode or repair its values"
    columns = {k: v.tolist() for k, v in bad.items()}
    path = rec.write_canonical(tmp_path / "a.parquet", **columns)
    with refused(rf"a.parquet, episode e3: {want}"):
        read(path)
    columns["obs"] = columns["obs"][:-1]
    path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 5), rec.batch(3, 7, **columns)])
    with refused(rf"a.json, episode 3: {want}"):
        read(path)
    path = rec.write_d4rl(tmp_path / "a.hdf5", (7,), timeouts=(6,), **{long: bad[name][:7]})
    with refused(rf"a.hdf5, episode 0: {want}"):
        read(path)


def test_ragged_shapes_are_refused(tmp_path):
    cut = arrays(3, 7)["obs"].tolist()
    cut[2] = cut[2][:2]
    remedy = "record arrays of one shape at every step"
    path = rec.write_canonical(tmp_path / "a.parquet", obs=cut)
    with refused(rf"a.parquet, episode e3: column 'obs' is ragged: lists of \[2, 3\] .*; {remedy}"):
        read(path)
    step_rows = rows(2, 5)
    step_rows[3]["obs"] = [1.0]
    with refused(rf"b.parquet: column 'obs' is ragged: lists of \[1, 3\] values; {remedy}"):
        read(rec.write_rows(tmp_path / "b.parquet", step_rows))
    step_rows = [row | dict(obs=rec.packed(np.zeros(2 + row["t"]))) for row in rows(2, 2)]
    with refused(rf"c.parquet: column 'obs' is ragged: shapes \[\(2,\), \(3,\)\]; {remedy}"):
        read(rec.write_rows(tmp_path / "c.parquet", step_rows))
    with refused(rf"a.json: column 'obs' is ragged \(.*; {remedy}"):
        read(rec.write_batches(tmp_path / "a.json", [rec.batch(3, 8, obs=cut)]))
    lines = [rec.batch(2, 3), rec.batch(3, 2, obs=[[1.0]] * 2)]
    with refused(rf"b.json: column 'obs' is ragged: shapes \[\(1,\), \(3,\)\]; {remedy}"):
        read(rec.write_batches(tmp_path / "b.json", lines))


def test_mismatched_lengths_are_refused(tmp_path):
    want = "it holds {} observations, {} actions and 7 rewards; record an action and a reward"
    for observations, actions in [(9, 7), (6, 7), (8, 6)]:
        made = dict(obs=[[0.0] * 3] * observations, actions=[[0.0] * 2] * actions)
        path = rec.write_canonical(tmp_path / "a.parquet", **made)
        # T = 7: 9 observations are one too many; 6 observations or 6 actions are one too few
        with refused(f"a.parquet, episode e3: {want.format(observations, actions)}"):
            read(path)


@pytest.mark.parametrize("column", ["obs", "actions", "rewards"])
@pytest.mark.parametrize("value", [None, []])
def test_an_episode_without_values_is_refused(tmp_path, column, value):
    path = rec.write_canonical(tmp_path / "a.parquet", **{column: value})
    with refused(f"a.parquet, episode e3: {column} are not a list of steps, or empty; remove"):
        read(path)


def test_an_episode_that_changes_its_shape_between_files_is_refused(tmp_path):
    rec.write_rows(tmp_path / "1.parquet", rows(2, 5)[:3])
    wider = [row | dict(obs=[*row["obs"], 0.0], new_obs=None) for row in rows(2, 5)[3:]]
    rec.write_rows(tmp_path / "2.parquet", wider)
    with refused(r"1.parquet, episode 2: its steps have different shapes \(.*; record arrays"):
        read(tmp_path)


def test_the_error_for_data_that_does_not_fit_the_spaces_shows_both(tmp_path):
    rec.write_canonical(tmp_path / "1.parquet", [(2, 5)])
    wider = [[0.0] * 4] * 8
    rec.write_canonical(tmp_path / "2.parquet", [(3, 7)], obs=wider)
    first, second = read(tmp_path).episodes
    assert first.conform(OBSERVATIONS, ACTIONS).observations.shape == (6, 3)
    with refused(
        r"2.parquet, episode e3: observations have the shape \(4,\) at each step, but the space is "
        r"Box\(.*\(3,\).*; check that the environment"
    ):
        second.conform(OBSERVATIONS, ACTIONS)
    with refused(r"1.parquet, episode e2: actions have the shape \(2,\) .* is Discrete\(3\)"):
        first.conform(OBSERVATIONS, Discrete(3))


def test_the_error_for_actions_outside_the_space_names_the_step_and_the_fix(tmp_path):
    actions = arrays(3, 7)["actions"]
    actions[5, 1] = -1.5
    path = rec.write_canonical(tmp_path / "a.parquet", actions=actions.tolist())
    good, bad = read(path).episodes
    np.testing.assert_array_equal(good.conform(OBSERVATIONS, ACTIONS).actions, good.actions)
    with refused(
        r"a.parquet, episode e3: the action \[.*-1.5 *\] at step 5 lies outside Box\(-1.0, 1.0.*; "
        r"clip the recorded actions, or set offline_data\(actions_in_input_normalized=True\)"
    ):
        bad.conform(OBSERVATIONS, ACTIONS)


@pytest.mark.parametrize(("action", "step"), [(2, 0), (6, 1), (3.5, 2)])
def test_discrete_actions_outside_the_space_are_refused(tmp_path, action, step):
    actions = [3.0, 4.0, 5.0]
    actions[step] = action
    path = rec.write_canonical(tmp_path / "a.parquet", [(2, 3)], actions=actions)
    with refused(rf"e2: the action {action}\S* at step {step} lies outside Discrete\(3, start=3\)"):
        read(path).episodes[0].conform(OBSERVATIONS, Discrete(3, start=3))


# ---- episodes without a beginning or an end


@pytest.mark.semantics(1)
@pytest.mark.parametrize("name", ["a.parquet", "b.parquet", "c.json"])
def test_an_episode_without_an_end_is_refused_dropped_or_kept_as_configured(tmp_path, name):
    path = tmp_path / name
    if name == "a.parquet":
        rec.write_rows(path, [*rows(2, 5), *rows(3, 7, end=None)])
    elif name == "b.parquet":
        whole, part = (rec.rllib_episode(2, 5), rec.rllib_episode(3, 7, end=None))
        rec.write_states(path, [whole.get_state() | {"id_": 2}, part.get_state() | {"id_": 3}])
    else:
        lines = [rec.batch(2, 5), rec.batch(3, 7, dones=[False] * 7, truncateds=[False] * 7)]
        lines[0] |= dict(truncateds=[False] * 5)
        for line in lines:
            line["terminateds"] = line.pop("dones")
        rec.write_batches(path, lines)
    want = rf"{name}, episode 3: the last of its 7 steps is neither terminated nor truncated"
    with refused(rf"{want}.*; record whole episodes, or choose .*incomplete=\"drop\"\).*\"keep\""):
        read(path)
    assembly = read(path, "drop")
    assert [len(e) for e in assembly.episodes] == [5]
    (message,) = assembly.dropped
    assert re.search(want, message)
    assembly = read(path, "keep")
    assert [len(e) for e in assembly.episodes] == [5, 7]
    assert (assembly.episodes[1].terminated, assembly.episodes[1].truncated) == (False, True)
    assert len(assembly.episodes[1].observations) == 8
    assert assembly.dropped == []


@pytest.mark.semantics(1)
def test_an_episode_whose_first_or_middle_steps_are_missing_is_refused(tmp_path):
    path = rec.write_rows(tmp_path / "a.parquet", [*rows(2, 5), *rows(3, 7)[2:]])
    want = "a.parquet, episode 3: its steps 0 … 1 are missing, 5 steps follow; add the missing rows"
    with refused(want):
        read(path)
    assembly = read(path, "drop")
    assert [e.id for e in assembly.episodes] == ["2"]
    assert re.search(want, assembly.dropped[0])
    assert len(read(path, "keep").episodes[1]) == 5
    path = rec.write_rows(tmp_path / "b.parquet", [*rows(2, 7)[:3], *rows(2, 7)[4:]])
    with refused("b.parquet, episode 2: its step 3 is missing; add the missing rows, or leave"):
        read(path)
    assert read(path, "drop").episodes == []


# ---- the writer


def good_episode(**changes):
    return arrays(2, 5) | dict(terminated=True, truncated=False) | changes


def test_the_writer_refuses_what_the_readers_would_refuse(tmp_path):
    nan, outside = np.full(5, np.nan), np.full((5, 2), 1.5)
    ragged = [[0.0] * 3] * 5 + [[0.0]]
    for changes, message in [
        (dict(terminated=False), "episode 1: it is neither terminated nor truncated; write whole"),
        (dict(rewards=nan), "episode 1: rewards at step 0 are nan"),
        (dict(actions=outside), "episode 1: the action .* at step 0 lies outside Box"),
        (dict(obs=np.zeros((6, 4))), r"episode 1: observations have the shape \(4,\)"),
        (dict(rewards=np.zeros(4)), "episode 1: it holds 6 observations, 5 actions and 4 rewards"),
        (dict(obs=ragged), "episode 1: column 'obs' is ragged"),
        (dict(episode_id="mine", rewards=nan), "episode mine: rewards at step 0"),
    ]:
        with refused(f"write_episodes, {message}"):
            write_episodes(
                [good_episode(), good_episode(**changes)], tmp_path / "a", OBSERVATIONS, ACTIONS
            )
        assert list((tmp_path / "a").iterdir()) == []


def test_the_writer_names_the_missing_columns(tmp_path):
    given = good_episode(rewards_to_go=0)
    del given["rewards"], given["truncated"]
    with refused(
        r"write_episodes, episode 0: \['rewards', 'truncated'\] are missing; it has \['actions', "
        r"'obs', .*\]; give obs, actions, rewards, terminated, truncated"
    ):
        write_episodes([given], tmp_path, OBSERVATIONS, ACTIONS)


def test_the_writer_does_not_overwrite_existing_data(tmp_path):
    (path,) = write_episodes([good_episode()], tmp_path, OBSERVATIONS, ACTIONS)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="already holds Parquet files; choose an empty"):
        write_episodes([good_episode()], tmp_path, OBSERVATIONS, ACTIONS)
    assert path.read_bytes() == before


# ---- through Ray Data


def test_an_error_in_a_task_arrives_unchanged(cluster, tmp_path):
    rec.write_rows(tmp_path / "1.parquet", rows(2, 5))
    path = rec.write_canonical(tmp_path / "2.parquet", obs=None)
    with refused("2.parquet, episode e3: obs are not a list of steps, or empty") as caught:
        rec.read_with_ray(tmp_path)
    assert type(caught.value) is DataError
    assert caught.value.parts[0].startswith(str(path))


# ---- end flags

BAD_FLAGS = {
    "text": "False",
    "nan": float("nan"),
    "negative": -1,
    "fraction": 0.01,
    "two": 2,
    "list": [0, 1],
}


def with_flag(step_rows, name, value, row=2):
    """Rows with one bad flag. A column has one type, so the other flags are of the value's type."""
    others = {"str": "False", "list": [0, 0], "int": 0, "float": 0.0}
    other = others[type(value).__name__]
    return [step | {name: value if i == row else other} for i, step in enumerate(step_rows)]


@pytest.mark.parametrize("name", ["terminateds", "truncateds", "dones"])
@pytest.mark.parametrize("kind", BAD_FLAGS)
def test_end_flags_are_booleans_or_zero_and_one(tmp_path, name, kind):
    step_rows = with_flag(rec.rows(2, 5), name, BAD_FLAGS[kind])
    with refused(rf"a.parquet: .*{name}.*; record .*(booleans|one number)"):
        read(rec.write_rows(tmp_path / "a.parquet", step_rows))


@pytest.mark.parametrize("kind", ["nan", "negative", "fraction", "two"])
def test_end_flags_of_d4rl_files_are_booleans_or_zero_and_one(tmp_path, kind):
    flags = np.array([0, 0, 0, 0, BAD_FLAGS[kind]], float)
    path = rec.write_d4rl(tmp_path / "a.hdf5", (5,), terminals=flags)
    with refused(r"a.hdf5: terminals hold .* at row 4; record end flags as booleans"):
        read(path)


@pytest.mark.parametrize("name", ["terminated", "truncated"])
@pytest.mark.parametrize("kind", BAD_FLAGS)
def test_end_flags_of_canonical_episodes_are_booleans_or_zero_and_one(tmp_path, name, kind):
    value = BAD_FLAGS[kind]
    episodes = [rec.arrays(2, 5) | dict(terminated=True, truncated=False) | {name: value}]
    with refused(rf"{name} .*; record end flags as booleans"):
        write_episodes(episodes, tmp_path / "d", rec.OBSERVATIONS, rec.ACTIONS)
    made = {k: v.tolist() for k, v in rec.arrays(2, 5).items()}
    made |= dict(terminated=1.0, truncated=0.0) | {name: value}
    with refused(rf"{name} .*; record end flags as booleans"):
        read(rec.write_rows(tmp_path / "a.parquet", [made]))


@pytest.mark.parametrize("one", [1, 1.0, True])
def test_zero_and_one_are_flags(tmp_path, one):
    step_rows = [step | dict(terminateds=type(one)(step["terminateds"])) for step in rec.rows(2, 5)]
    (episode,) = read(rec.write_rows(tmp_path / "a.parquet", step_rows)).episodes
    assert (episode.terminated, episode.truncated) == (True, False)


@pytest.mark.parametrize(
    ("columns", "ends"),
    [
        # the column that marks step 4, and the one that marks step 9; no ids
        (("dones", "truncateds"), [(True, False), (False, True)]),
        (("truncateds", "dones"), [(False, True), (True, False)]),
        (("terminateds", "dones"), [(True, False), (False, True)]),
        (("dones", "terminateds"), [(False, True), (True, False)]),
        (("terminateds", "truncateds"), [(True, False), (False, True)]),
    ],
)
def test_every_column_of_end_flags_ends_episodes(tmp_path, columns, ends):
    step_rows = []
    for step in rec.rows(2, 10):
        kept = {k: v for k, v in step.items() if k in ("obs", "actions", "rewards")}
        flags = {name: step["t"] == (4, 9)[i] for i, name in enumerate(columns)}
        step_rows.append(kept | flags)
    episodes = read(rec.write_rows(tmp_path / "a.parquet", step_rows)).episodes
    assert [len(e) for e in episodes] == [5, 5]
    assert rec.ends(episodes) == ends


# ---- names of columns


def test_a_mapped_column_that_is_missing_is_refused(tmp_path):
    path = rec.write_rows(tmp_path / "a.parquet", rec.rows(2, 5))
    with refused(r"a.parquet: columns \['mine'\] are missing; it has .*'obs'.*input_read_schema"):
        read(path, names={"t": "mine"})


def test_an_unknown_name_in_the_read_schema_is_refused(tiny_data):
    config = tiny_config(tiny_data[0]).offline_data(input_read_schema={"observations": "obs"})
    with pytest.raises(ValueError, match=r"read_schema.* has no column 'observations'.*'obs'"):
        config.validate()
