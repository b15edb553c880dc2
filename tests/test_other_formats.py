"""Recordings of other programs read to the same episodes as our own."""

import io
import zipfile

import h5py
import numpy as np
import pyarrow as pa
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from hypothesis import given
from hypothesis import strategies as st

from rllib_dt.formats import tfrecord
from rllib_dt.formats.files import find_files
from rllib_dt.formats.minari import find_dataset, spaces_from_metadata
from rllib_dt.formats.recorded_spaces import recorded_spaces
from rllib_dt.spaces.trees import LeafChoice
from tests import other_recordings as other
from tests.other_recordings import EPISODES
from tests.recordings import (
    ACTIONS,
    OBSERVATIONS,
    arrays,
    check,
    ends,
    fragments,
    read,
    read_with_ray,
    refused,
)


def check_all(episodes, *, last=True, names=("0", "1", "2")):
    """Asserts that the episodes are `EPISODES`, with their names and ends."""
    assert [e.id for e in episodes] == list(names)
    assert ends(episodes) == [(True, False), (False, True), (True, False)]
    for episode, (number, length) in zip(episodes, EPISODES, strict=True):
        check(episode, number, length, last=last)


def check_leaves(episodes, first, *, last=True, ended=True):
    """Asserts the same of observations that were recorded as two leaves."""
    for episode, (number, length) in zip(episodes, EPISODES, strict=True):
        want, rows = arrays(number, length), length + last
        np.testing.assert_array_equal(episode.observations[first], want["obs"][:rows, :2])
        np.testing.assert_array_equal(episode.observations["rest"], want["obs"][:rows, 2:])
        np.testing.assert_array_equal(episode.actions, want["actions"].astype(np.float32))
        np.testing.assert_array_equal(episode.rewards, want["rewards"].astype(np.float32))
    if ended:
        assert ends(episodes) == [(True, False), (False, True), (True, False)]


# ---- Minari


@pytest.mark.parametrize("kind", ["hdf5", "arrow", "parquet"])
@pytest.mark.semantics(30)
def test_minari_reads_exactly_from_each_of_its_storages(cluster, tmp_path, kind):
    folder = tmp_path / "space" / "walk-v0"
    if kind == "hdf5":
        other.write_minari_hdf5(folder)
    else:
        other.write_minari_tables(folder, kind)
    assert len(find_files(str(folder))) == (1 if kind == "hdf5" else 3)  # no metadata.json
    check_all(read(folder).episodes)
    check_all(read_with_ray(folder).episodes)


def test_minaris_episodes_come_in_the_order_of_their_numbers(tmp_path):
    folder = other.write_minari_hdf5(tmp_path, [(n, 2) for n in range(12)])
    assert [e.id for e in read(folder).episodes] == [str(n) for n in range(12)]


def test_minaris_tuples_dicts_and_texts(tmp_path):
    spaces = (
        Dict(far=Tuple([OBSERVATIONS, Dict(near=OBSERVATIONS)]), mission=Text(9)),
        Tuple([ACTIONS, ACTIONS]),
    )

    def nested(number, columns):
        obs, actions = columns["observations"], columns["actions"]
        texts = np.array(["go é"] * len(obs), object)
        return dict(
            observations={"far": (obs, {"near": -obs}), "mission": texts},
            actions=(actions, 2 * actions),
        )

    folder = other.write_minari_hdf5(tmp_path, change=nested, spaces=spaces)
    assert recorded_spaces(str(folder)) == spaces
    choice = LeafChoice(texts=("mission",))
    (episode, *_) = read(folder, observed=choice).episodes
    want = arrays(2, 5)
    assert list(episode.observations) == ["far/0", "far/1/near", "mission"]
    np.testing.assert_array_equal(episode.observations["far/1/near"], -want["obs"])
    np.testing.assert_array_equal(episode.actions["1"], 2 * want["actions"])
    assert set(episode.observations["mission"]) == {"go é".encode()}
    ignoring = read(folder, observed=LeafChoice(ignore=("mission", "far/0"))).episodes
    assert list(ignoring[0].observations) == ["far/1/near"]


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_minaris_flat_boxes_get_the_shape_of_the_space(tmp_path, kind):
    def column(name, values):
        if name == "observations":
            values = np.stack([values, -values, 2 * values, 3 * values], 1)  # (T + 1, 4, 3)
        return other.flat_lists(name, values)

    folder = other.write_minari_tables(tmp_path, kind, column=column)
    (episode, *_) = read(folder, shapes={"obs": (4, 3)}).episodes
    want = arrays(2, 5)["obs"]
    np.testing.assert_array_equal(
        episode.observations, np.stack([want, -want, 2 * want, 3 * want], 1)
    )


def jpeg(number, size=(40, 36)):
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    pixels = np.full((*size, 3), 10 * number, np.uint8)
    pixels[: number + 1] = 200  # files of other sizes
    image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue(), pixels


@pytest.mark.parametrize("of_one_size", [True, False])
def test_images_in_hdf5_may_be_jpeg(tmp_path, of_one_size):
    def images(number, columns):
        count = len(columns["observations"])
        files = [jpeg(1 if of_one_size else step)[0] for step in range(count)]
        rows = [np.frombuffer(file, np.uint8) for file in files]
        if of_one_size:
            return {"observations": np.stack(rows)}
        return {"observations": None, "actions": columns["actions"]}

    folder = other.write_minari_hdf5(tmp_path, [(2, 5)], change=images)
    if not of_one_size:
        with h5py.File(tmp_path / "data" / "main_data.hdf5", "a") as file:
            rows = file["episode_0"].create_dataset(
                "observations", (6,), dtype=h5py.vlen_dtype(np.uint8)
            )
            for step in range(6):
                rows[step] = np.frombuffer(jpeg(step)[0], np.uint8)
    (episode,) = read(folder).episodes
    assert (episode.observations.shape, episode.observations.dtype) == ((6, 40, 36, 3), np.uint8)
    want = np.stack([jpeg(1 if of_one_size else step)[1] for step in range(6)])
    assert np.abs(episode.observations.astype(int) - want).mean() < 4  # JPEG is lossy
    assert np.abs(episode.observations.astype(int) - want[::-1]).mean() > (4, -1)[of_one_size]


def test_minaris_images_in_arrow_may_be_jpeg(tmp_path):
    def column(name, values):
        if name == "observations":
            return pa.array([jpeg(step)[0] for step in range(len(values))], pa.binary())
        return other.flat_lists(name, values)

    folder = other.write_minari_tables(tmp_path, "arrow", [(2, 5)], column=column)
    (episode,) = read(folder).episodes
    assert episode.observations.shape == (6, 40, 36, 3)


def test_a_minari_set_is_found_by_its_id(tmp_path, monkeypatch):
    other.write_minari_hdf5(tmp_path / "D4RL" / "door" / "human-v2")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert find_dataset("D4RL/door/human-v2") == str(tmp_path / "D4RL" / "door" / "human-v2")
    for name in ("D4RL/door/human-v3", "D4RL/door", "../door/human-v2", "/etc/human-v2"):
        assert find_dataset(name) is None


@pytest.mark.parametrize(
    "space",
    [
        Box(-np.inf, np.array([1.5, np.inf]), dtype=np.float64),
        Box(0, 255, (4, 3, 2), np.uint8),
        Discrete(5, start=-2),
        MultiDiscrete([3, 2]),
        MultiBinary(4),
        Text(7, charset="abé"),
        Dict(b=Tuple([Discrete(2), Dict(a=OBSERVATIONS)]), a=ACTIONS),
    ],
    ids=str,
)
def test_minaris_descriptions_of_spaces(tmp_path, space):
    data = other.write_metadata(tmp_path, (space, ACTIONS))
    assert spaces_from_metadata((data / "metadata.json").read_bytes()) == (space, ACTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, c: {"rewards": None}, r"datasets \['rewards'\] are missing; episode 0 has"),
        (
            lambda n, c: {"rewards": c["rewards"][:-1]},
            "episode 0: it holds 6 observations, 5 actions and 4 rewards",
        ),
        (
            lambda n, c: {"actions": c["actions"][:-1]},
            "episode 0: it holds 6 observations, 4 actions and 5 rewards",
        ),
        (
            lambda n, c: {"terminations": np.arange(5) == 2},
            "terminations mark step 2 as an end, but the episode has 5 steps",
        ),
        (lambda n, c: {"truncations": np.full(5, 0.5)}, "episode 0: truncations hold 0.5 at row 0"),
        (
            lambda n, c: {"terminations": np.zeros(5, bool)},
            "episode 0: the last of its 5 steps is neither terminated nor truncated",
        ),
        (lambda n, c: {"observations": {}}, "observations have no leaf that is read"),
    ],
)
def test_bad_minari_episodes_are_refused_by_name(tmp_path, change, message):
    folder = other.write_minari_hdf5(tmp_path, [(2, 5)], change=change)
    with refused(f"main_data.hdf5.*{message}"):
        read(folder)


def test_several_descriptions_must_agree(tmp_path):
    other.write_minari_hdf5(tmp_path / "a-v0")
    other.write_minari_hdf5(tmp_path / "b-v0", spaces=(OBSERVATIONS, Discrete(2)))
    with refused(r"b-v0/data/main_data.hdf5.*it was recorded with the spaces .*Discrete\(2\)"):
        recorded_spaces(str(tmp_path))


# ---- Arrow files


@pytest.mark.parametrize("stream", [False, True])
def test_trajectories_of_hugging_face_datasets(tmp_path, stream):
    rows = [arrays(*episode) for episode in EPISODES]
    table = pa.table(
        {
            "obs": [a["obs"].tolist() for a in rows],
            "acts": [a["actions"].tolist() for a in rows],
            "infos": ["{}"] * 3,
            "terminal": [True, False, True],
            "rews": [a["rewards"].tolist() for a in rows],
        }
    )
    path = tmp_path / "data-00000-of-00001.arrow"
    other.write_arrow(path, table, stream=stream)
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{}")
    check_all(read(tmp_path).episodes)
    without = other.write_arrow(tmp_path / "b.arrow", table.drop_columns(["rews"]), stream=stream)
    with refused("b.arrow: it has no rewards"):
        read(without)
    episodes = read(without, missing_rewards="success").episodes
    assert [e.rewards.tolist() for e in episodes] == [[0, 0, 0, 0, 1], [1], [0, 0, 0, 0, 0, 0, 1]]


def test_compressed_unknown_and_damaged_arrow_files_are_refused(tmp_path):
    table = pa.table({"obs": [[1.0]]})
    path = other.write_arrow(tmp_path / "a.arrow", table)
    with refused(r"a.arrow: its columns \['obs'\] are of no known layout"):
        read(path)
    other.write_arrow(path, pa.table({"obs": [[1.0] * 100]}), compression="zstd")
    with refused("a.arrow: its record batches are compressed"):
        read(path)
    whole = other.write_minari_tables(tmp_path / "set", "arrow", [(2, 5)]) / "data/0/part-0.arrow"
    content = whole.read_bytes()
    check(read(whole).episodes[0], 2, 5)
    ends_at = content.rindex(b"\xff\xff\xff\xff\0\0\0\0")  # the rest is an index that is not read
    for cut in [*range(1, ends_at, 37), ends_at, ends_at + 7]:
        whole.write_bytes(content[:cut])
        with refused("part-0.arrow.*it is not a complete Arrow file"):
            read(whole)


def test_extension_types_in_arrow_files_are_refused_before_they_are_built(tmp_path):
    built = []

    class Trap(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.int64(), "tests.trap")

        def __arrow_ext_serialize__(self):
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage, serialized):
            built.append(storage)
            return cls()

    pa.register_extension_type(Trap())
    try:
        array = pa.ExtensionArray.from_storage(Trap(), pa.array([1]))
        path = other.write_arrow(tmp_path / "a.arrow", pa.table({"observations": array}))
        with refused("column 'observations' is of the extension type 'tests.trap'"):
            read(path)
        assert built == []
    finally:
        pa.unregister_extension_type("tests.trap")


# ---- robomimic, d3rlpy


def test_robomimic_reads_exactly(tmp_path):
    path = other.write_robomimic(tmp_path / "demo.hdf5")
    episodes = read(path).episodes
    check_leaves(episodes, "position")
    assert [e.id for e in episodes] == ["demo_0", "demo_1", "demo_2"]
    last_is_missing = read(other.write_robomimic(tmp_path / "b.hdf5", next_obs=False)).episodes
    check_leaves(last_is_missing, "position", last=False)


def test_a_success_within_a_demonstration_is_no_end(tmp_path):
    path = other.write_robomimic(tmp_path / "a.hdf5", dones=lambda n: np.arange(n) == n // 2)
    episodes = read(path).episodes
    check_leaves(episodes, "position", ended=False)
    assert ends(episodes) == [(False, True), (True, False), (False, True)]
    order = read(other.write_robomimic(tmp_path / "b.hdf5", [(n, 2) for n in range(11)])).episodes
    assert [e.id for e in order] == [f"demo_{n}" for n in range(11)]


def test_d3rlpy_2_reads_exactly(tmp_path):
    check_all(read(other.write_d3rlpy(tmp_path / "a.h5")).episodes, last=False)
    many = read(other.write_d3rlpy(tmp_path / "b.h5", [(n, 2) for n in range(11)])).episodes
    assert [e.id for e in many] == [str(n) for n in range(11)]


def test_d3rlpy_1_marks_every_end_apart(tmp_path):
    from tests.recordings import write_d4rl

    path = write_d4rl(
        tmp_path / "a.h5",
        (5, 3, 7),
        terminals=(4, 14),
        timeouts=None,
        episode_terminals=np.isin(np.arange(15), (4, 7, 14)).astype(np.float32),
    )
    episodes = read(path).episodes
    assert ends(episodes) == [(True, False), (False, True), (True, False)]
    for episode, (number, length) in zip(episodes, ((0, 5), (1, 3), (2, 7)), strict=True):
        check(episode, number, length, last=False)


def test_a_link_to_another_file_is_refused_in_every_layout(tmp_path):
    for name, write, place in (
        ("a.hdf5", other.write_robomimic, "data/demo_0"),
        ("b.hdf5", other.write_d3rlpy, "observations_0"),
    ):
        path = write(tmp_path / name)
        with h5py.File(path, "a") as file:
            del file[place]
            file[place] = h5py.ExternalLink("elsewhere.hdf5", "/x")
        with refused("is a link to another file, elsewhere.hdf5"):
            read(path)
    folder = other.write_minari_hdf5(tmp_path / "set")
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_3"] = h5py.ExternalLink("elsewhere.hdf5", "/x")
    with refused("is a link to another file, elsewhere.hdf5"):
        read(folder)


@pytest.mark.parametrize("write", ["minari", "tables", "robomimic", "d3rlpy", "npz", "atari"])
def test_mapping_columns_of_a_fixed_layout_is_refused(tmp_path, write):
    path = {
        "minari": lambda: other.write_minari_hdf5(tmp_path),
        "tables": lambda: other.write_minari_tables(tmp_path, "parquet"),
        "robomimic": lambda: other.write_robomimic(tmp_path / "a.hdf5"),
        "d3rlpy": lambda: other.write_d3rlpy(tmp_path / "a.h5"),
        "npz": lambda: other.write_imitation(tmp_path / "a.npz"),
        "atari": lambda: other.write_d4rl_atari(tmp_path),
    }[write]()
    with refused(r"input_read_schema=\{'rewards': 'dense'\} maps columns, but this format's are"):
        read(path, names={"rewards": "dense"})


def test_names_that_lerobots_tables_lack_are_refused(tmp_path):
    folder = other.write_lerobot(tmp_path, "3.0")
    for name in ("rewards", "truncateds", "obs", "terminateds"):
        with refused("input_read_schema maps .*next.rewrd.*, which it does not have"):
            read(folder, names={name: "next.rewrd"}, missing_rewards=5.0)


def test_a_done_at_a_time_limit_of_lerobot_is_a_truncation(tmp_path):
    both = other.lerobot_table(0, 3, 4) | {"next.done": pa.array([False] * 3 + [True])}
    import pyarrow.parquet as pq

    pq.write_table(pa.table(both), tmp_path / "a.parquet")
    assert ends(read(tmp_path).episodes) == [(False, True)]


def test_robomimics_next_obs_must_be_as_long_as_obs(tmp_path):
    path = other.write_robomimic(tmp_path / "a.hdf5", [(2, 5)])
    with h5py.File(path, "a") as file:
        rest = file["data/demo_0/next_obs/rest"][:2]
        del file["data/demo_0/next_obs/rest"]
        file["data/demo_0/next_obs/rest"] = rest
    with refused("episode demo_0: obs and next_obs differ"):
        read(path)


def test_d3rlpy_1_splits_at_the_ends_of_episodes_only(tmp_path):
    from tests.recordings import write_d4rl

    last = np.isin(np.arange(6), (5,)).astype(np.float32)
    path = write_d4rl(
        tmp_path / "a.h5", (6,), terminals=(1, 5), timeouts=None, episode_terminals=last
    )
    (episode,) = read(path).episodes
    assert (len(episode), episode.terminated) == (6, True)


def test_numbered_names_may_have_leading_zeros(tmp_path):
    folder = other.write_minari_hdf5(tmp_path, [(2, 5)])
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file.move("episode_0", "episode_007")
    (episode,) = read(folder).episodes
    assert (episode.id, len(episode)) == ("7", 5)


def test_images_of_16_bits_keep_their_values(tmp_path):
    image = pytest.importorskip("PIL.Image")
    depth = np.arange(36 * 40, dtype=np.uint16).reshape(36, 40) * 40

    def png(number, columns):
        buffer = io.BytesIO()
        image.fromarray(depth).save(buffer, "PNG")
        row = np.frombuffer(buffer.getvalue(), np.uint8)
        return {"observations": np.stack([row] * 6)}

    (episode,) = read(other.write_minari_hdf5(tmp_path, [(2, 5)], change=png)).episodes
    np.testing.assert_array_equal(episode.observations, np.stack([depth] * 6))


@pytest.mark.parametrize(
    "options",
    [{"missing_rewards": v} for v in ("sucess", np.nan, True)]
    + [{"missing_ends": "done"}, {"last_row": ""}],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        read(other.write_ogbench(tmp_path / "a.npz"), **options)


def test_trajectories_whose_observations_are_no_lists_are_of_no_known_layout(tmp_path):
    table = pa.table({"obs": [1.0], "acts": [[1.0]], "terminal": [True]})
    with refused("a.arrow: its columns .* are of no known layout"):
        read(other.write_arrow(tmp_path / "a.arrow", table))


def test_an_episode_of_its_first_observation_alone_is_named(tmp_path):
    path = other.write_ogbench(tmp_path / "a.npz", [(2, 5), (3, 0)])
    with refused("a.npz, episode 1: it has no step, only the observation that begins it"):
        read(path, missing_rewards=0.0)


# ---- npz


def test_a_negative_shape_in_a_header_is_refused(tmp_path):
    path = other.write_ogbench(tmp_path / "a.npz")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["terminals.npy"] = members["terminals.npy"].replace(b"(16,)", b"(-9,)")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with refused(r"'terminals' declares the shape \(-9,\)"):
        read(path, missing_rewards=0.0)


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_layouts_read_exactly(tmp_path, compressed):
    check_all(read(other.write_imitation(tmp_path / "a.npz")).episodes)
    sb = read(other.write_stable_baselines(tmp_path / "b.npz")).episodes
    assert ends(sb) == [(True, False)] * 3
    for episode, (number, length) in zip(sb, EPISODES, strict=True):
        check(episode, number, length, last=False)


def test_fortran_order_and_axes_of_one(tmp_path):
    obs = np.asfortranarray(np.concatenate([arrays(*e)["obs"] for e in EPISODES]))
    rews = np.concatenate([arrays(*e)["rewards"] for e in EPISODES])[:, None]
    check_all(read(other.write_imitation(tmp_path / "a.npz", obs=obs, rews=rews)).episodes)


def test_ogbench_has_a_row_for_the_last_state_and_no_rewards(tmp_path):
    path = other.write_ogbench(tmp_path / "a.npz")
    with refused(r"a.npz: it has no rewards.*missing_rewards=\"success\""):
        read(path)
    episodes = read(path, missing_rewards=-1.0).episodes
    assert ends(episodes) == [(False, True)] * 3
    for episode, (number, length) in zip(episodes, EPISODES, strict=True):
        want = arrays(number, length)
        np.testing.assert_array_equal(episode.observations, want["obs"])
        np.testing.assert_array_equal(episode.actions, want["actions"])
        assert episode.rewards.tolist() == [-1.0] * length
    # files of another layout, whose last row is a step, must not lose it
    for more in ({"rewards": np.zeros(16)}, {"next_observations": np.zeros((16, 3))}):
        with refused(r"b.npz: it has .* beside .*'terminals'\], which OGBench's files do not"):
            read(other.write_ogbench(tmp_path / "b.npz", **more), missing_rewards=0.0)


def test_d4rls_arrays_may_be_npz(tmp_path):
    parts = [arrays(*episode) for episode in EPISODES]
    lasts = np.cumsum([length for _, length in EPISODES]) - 1
    columns = dict(
        observations=np.concatenate([a["obs"][:-1] for a in parts]),
        actions=np.concatenate([a["actions"] for a in parts]),
        rewards=np.concatenate([a["rewards"] for a in parts]),
        terminals=np.isin(np.arange(13), lasts[[0, 2]]),
        timeouts=np.isin(np.arange(13), lasts[[1]]),
        next_observations=np.concatenate([a["obs"][1:] for a in parts]),
    )
    check_all(read(other.save(tmp_path / "a.npz", columns)).episodes, last=False)


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        (other.write_imitation, {"indices": [5]}, "cut 13 actions into 2 trajectories"),
        (other.write_imitation, {"indices": [5, 5]}, "the shortest of 0 steps"),
        (other.write_imitation, {"obs": np.zeros((15, 3))}, "arrays have the lengths {'obs': 15}"),
        (other.write_imitation, {"acts": np.array([{}] * 13, object)}, "'acts' holds object"),
        (other.write_imitation, {"obs": None}, "are of no known layout"),
        (other.write_ogbench, {"terminals": np.zeros(16)}, "its last row is no end"),
        (
            other.write_stable_baselines,
            {"episode_starts": np.arange(13) == 1},
            "its first row is no start",
        ),
        (
            other.write_stable_baselines,
            {"episode_starts": np.full(13, 2)},
            "episode_starts hold 2 at row 0",
        ),
    ],
)
def test_bad_npz_files_are_refused_by_name(tmp_path, write, change, message):
    with refused(f"a.npz.*{message}"):
        read(write(tmp_path / "a.npz", **change), missing_rewards=0.0)


def test_npz_files_that_are_cut_short_are_refused(tmp_path):
    path = other.write_imitation(tmp_path / "a.npz")
    content = path.read_bytes()
    for cut in range(1, len(content), 211):
        path.write_bytes(content[:cut])
        with refused("a.npz.*it is not a complete npz file"):
            read(path)


# ---- d4rl-atari


@pytest.mark.parametrize("name", ["{}.gz", "{}.npy.gz"])
def test_d4rl_ataris_folders_are_single_frames_without_truncations(tmp_path, name):
    folder = other.write_d4rl_atari(tmp_path / "1", name=name)
    (found,) = find_files(str(tmp_path))
    assert found[0] == str(folder / name.format("observation"))
    assembly = read(tmp_path)
    assert len(assembly.dropped) == 1  # the steps after the last termination
    assert "the last of its 2 steps is neither terminated nor truncated" in assembly.dropped[0]
    assert [len(e) for e in assembly.episodes] == [length for _, length in EPISODES]
    for episode in assembly.episodes:
        steps = np.arange(len(episode))
        assert episode.observations.shape == (len(steps), 84, 84)
        np.testing.assert_array_equal(episode.observations[:, 5, 7], steps)
        np.testing.assert_array_equal(episode.actions, steps % 4)
        np.testing.assert_array_equal(episode.rewards, np.sign(steps - 2))
    stacks = Box(0, 255, (4, 84, 84), np.uint8), Discrete(4)
    conformed = assembly.episodes[0].conform(*stacks, stacked=("",))
    assert len(conformed) == 5


def test_a_part_of_dqns_replay_buffer_begins_within_an_episode(tmp_path):
    blank = {"frames": 0, "action": 0, "reward": 0.0}
    tail = [{"frames": 40 + t, "action": 1, "reward": 1.0} for t in range(2)]
    whole = [{"frames": 50 + t, "action": 2, "reward": 0.0} for t in range(4)]
    rows = [*tail, *[blank] * 3, *whole, *[blank] * 3, *whole]
    column = {name: np.array([row[name] for row in rows]) for name in blank}
    frames = np.broadcast_to(column["frames"][:, None, None], (16, 84, 84)).astype(np.uint8)
    folder = other.write_d4rl_atari(
        tmp_path,
        name="$store$_{}_ckpt.7.gz",
        observation=frames,
        action=column["action"],
        reward=column["reward"],
        terminal=np.isin(np.arange(16), (1, 8, 15)).astype(np.uint8),
    )
    episodes = read(folder).episodes
    assert [len(e) for e in episodes] == [4, 4]
    for episode in episodes:
        assert episode.observations[:, 0, 0].tolist() == [50, 51, 52, 53]
        assert episode.actions.tolist() == [2, 2, 2, 2]
    noted = "blank rows at the beginning of episodes left out"
    assert sum(f.notes.get(noted, 0) for f in fragments(folder)) == 6


def test_bad_d4rl_atari_folders_are_refused_by_name(tmp_path):
    short = other.write_d4rl_atari(tmp_path / "a", action=np.zeros(3))
    with refused(r"a/observation.gz: the files of its fields have different lengths"):
        read(short)
    missing = other.write_d4rl_atari(tmp_path / "b")
    (missing / "reward.gz").unlink()
    with refused("b/reward.gz: it has disappeared"):
        read(missing)
    cut = other.write_d4rl_atari(tmp_path / "c")
    content = (cut / "observation.gz").read_bytes()
    (cut / "observation.gz").write_bytes(content[: len(content) // 2])
    with refused("c/observation.gz.*is not complete"):
        read(cut)


# ---- RLDS


def test_rlds_reads_exactly_and_drops_the_row_of_the_last_observation(tmp_path):
    path = tmp_path / "bridge-train.tfrecord-00000-of-00002"
    other.write_rlds(path)
    (tmp_path / "features.json").write_text("{}")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert [name for name, _ in find_files(str(tmp_path))] == [str(path)]
    choice = LeafChoice(texts=("text",))
    episodes = read(tmp_path, observed=choice).episodes
    check_leaves(episodes, "position")
    assert set(episodes[0].observations["text"]) == {"go é".encode()}
    without = read(tmp_path, observed=LeafChoice(ignore=("text",))).episodes
    assert sorted(without[0].observations) == ["position", "rest"]
    with refused("episode 0: steps/observation/text holds text or bytes"):
        read(tmp_path)


def test_a_reward_in_the_last_row_of_rlds_is_asked_for(tmp_path):
    def rewarded(number):
        rewards = np.append(arrays(number, 5)["rewards"], 1.0)
        return {"reward": rewards, "observation/text": None}

    path = other.write_rlds(tmp_path / "a.tfrecord", [(2, 5)], change=rewarded)
    with refused(r'episode 0: its last row \(is_last\) has the reward 1.*last_row="keep"'):
        read(path)
    (kept,) = read(path, last_row="keep").episodes
    assert (len(kept), kept.rewards[-1], kept.actions[-1].tolist()) == (6, 1.0, [7.0, 7.0])
    assert len(kept.observations["rest"]) == 6
    (dropped,) = read(path, last_row="drop").episodes
    assert len(dropped) == 5
    assert sum(f.notes.get('rewards that last_row="drop" left out', 0)
               for f in fragments(path, last_row="drop")) == 1  # fmt: skip


def test_rlds_without_ends_or_rewards(tmp_path):
    def bare(number):
        return {"reward": None, "observation/text": None}

    path = other.write_rlds(tmp_path / "a.tfrecord", cut=True, change=bare)
    with refused("episode 0: it has no rewards|it has no rewards"):
        read(path)
    with refused("episode 0: the last of its 5 steps is neither terminated nor truncated"):
        read(path, missing_rewards=0.0)
    episodes = read(path, missing_rewards="success", missing_ends="truncated").episodes
    assert [(len(e), len(e.observations["rest"])) for e in episodes] == [(5, 5), (1, 1), (7, 7)]
    assert ends(episodes) == [(False, True)] * 3


def test_rlds_may_lack_is_last_and_is_terminal_decides(tmp_path):
    def without(number):
        return {"is_last": None, "observation/text": None}

    path = other.write_rlds(tmp_path / "a.tfrecord", [(2, 5)], cut=True, change=without)
    with refused("episode 0: it has no steps/is_last.*missing_ends="):
        read(path)
    (episode,) = read(path, missing_ends="terminated").episodes
    assert (len(episode), episode.terminated) == (5, True)

    def terminal(number):
        return without(number) | {"is_terminal": np.arange(6) == 4}

    path = other.write_rlds(tmp_path / "b.tfrecord", [(2, 5)], cut=True, change=terminal)
    (episode,) = read(path, missing_ends="truncated").episodes
    assert ends([episode]) == [(True, False)]

    def within(number):
        return {"is_terminal": np.arange(6) == 1, "observation/text": None}

    with refused("episode 0: is_terminal is set in row 1 of 6"):
        read(other.write_rlds(tmp_path / "c.tfrecord", [(2, 5)], change=within))
    with refused("episode 0: it has no steps/dense"):
        read(path, names={"rewards": "dense"}, missing_rewards=1.0, missing_ends="truncated")


def test_damaged_tfrecords_are_refused(tmp_path):
    path = other.write_rlds(tmp_path / "a.tfrecord", change=lambda n: {"observation/text": None})
    content = path.read_bytes()
    check_leaves(read(path).episodes, "position")
    sizes = {len(content)}
    for cut in range(1, len(content), 97):
        path.write_bytes(content[:cut])
        with refused("a.tfrecord.*it is not a complete TFRecord file|a.tfrecord, episode 0"):
            read(path)
        sizes.add(cut)
    path.write_bytes(b"\x01" + content[1:])
    with refused("the length of the record at byte 0 is damaged"):
        read(path)
    path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with refused("the record at byte 0 fails its checksum"):
        read(path)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=9),
        st.one_of(
            st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40),
            st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40),
            st.lists(st.binary(max_size=200), min_size=1, max_size=9),
        ),
        max_size=5,
    )
)
def test_examples_of_tensorflow_round_trip(features):
    given_arrays = {
        k: v if isinstance(v[0], bytes) else np.array(v, "f4" if type(v[0]) is float else "i8")
        for k, v in features.items()
    }
    found = tfrecord.features(other.example(given_arrays))
    assert list(found) == list(given_arrays)
    for name, values in given_arrays.items():
        if isinstance(values, list):
            assert found[name] == values
        else:
            np.testing.assert_array_equal(found[name], values)
            assert found[name].dtype == values.dtype


# ---- LeRobot


@pytest.mark.parametrize("version", ["2.1", "3.0"])
def test_lerobot_reads_exactly(cluster, tmp_path, version):
    folder = other.write_lerobot(tmp_path, version)
    assert len(find_files(str(folder))) == (3 if version == "2.1" else 1)
    check_leaves(read(folder).episodes, "state", last=False)
    check_leaves(read_with_ray(folder).episodes, "state", last=False)
    state = read(folder, names={"obs": "observation.state"}).episodes
    np.testing.assert_array_equal(state[0].observations, arrays(2, 5)["obs"][:-1, :2])


@pytest.mark.parametrize("version", ["2.1", "3.0"])
def test_lerobot_without_rewards_and_ends_needs_both_settings(tmp_path, version):
    without = ("next.reward", "next.done", "next.truncated")
    folder = other.write_lerobot(tmp_path, version, without=without)
    with refused(r"\.parquet: it has no rewards"):
        read(folder)
    with refused(r"neither next.done nor next.truncated says how episodes end"):
        read(folder, missing_rewards=0.0)
    settings = {"missing_rewards": "success", "missing_ends": "truncated"}
    episodes = read(folder, **settings).episodes
    assert [e.rewards.tolist() for e in episodes] == [[0, 0, 0, 0, 1], [1], [0, 0, 0, 0, 0, 0, 1]]
    assert ends(episodes) == [(False, True)] * 3
    notes = [f.notes for f in fragments(folder, **settings)]
    count = sum(n.get("episodes whose end missing_ends='truncated' gave", 0) for n in notes)
    steps = sum(n.get("steps whose reward missing_rewards='success' gave", 0) for n in notes)
    assert (count, steps) == (3, 13)


def test_lerobots_episodes_may_span_the_parts_that_are_read(tmp_path, monkeypatch):
    from rllib_dt.formats import step_rows

    monkeypatch.setattr(step_rows, "MAX_BYTES_AT_ONCE", 1)  # a row at a time
    without = ("next.reward", "next.done", "next.truncated")
    folder = other.write_lerobot(tmp_path, "3.0", without=without)
    settings = {"missing_rewards": "success", "missing_ends": "terminated"}
    episodes = read(folder, **settings).episodes
    assert [e.rewards.tolist() for e in episodes] == [[0, 0, 0, 0, 1], [1], [0, 0, 0, 0, 0, 0, 1]]
    assert ends(episodes) == [(True, False)] * 3
