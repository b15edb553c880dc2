"""Cameras of LeRobot's data sets that were recorded as video."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import Box, Dict

from rllib_dt.episodes.episode import DataError
from rllib_dt.spaces.composites import column_shapes, wanted
from tests import other_recordings as other
from tests.recordings import ACTIONS
from tests.recordings import read as read_files

av = pytest.importorskip("av", reason="the video extra")

H, W, FPS = 32, 48, 10
KEY = "observation.images.top"
LENGTHS = [(2, 5), (3, 7), (4, 4)]


def spaces(shape=(H, W, 3)):
    leaves = dict(state=Box(-99, 99, (2,)), rest=Box(-99, 99, (1,)))
    return Dict(**leaves, images=Dict(top=Box(0, 255, shape, np.uint8))), ACTIONS


def read(folder, spaces):
    """Reads as training does, and checks the episodes against the spaces."""
    observed, acted = spaces
    options = dict(
        observed=wanted(observed), acted=wanted(acted), shapes=column_shapes(observed, acted)
    )
    episodes = read_files(folder, **options).episodes
    return [episode.conform(observed, acted) for episode in episodes]


def frame(episode, step):
    """A gradient whose level tells the episode and the step."""
    level = 20 + 60 * episode + 8 * step
    image = np.full((H, W, 3), level, np.uint8)
    image[: H // 2, :, 0] = 250 - level
    return image


def write_video(path, frames, codec="libx264"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options={"crf": "1", "g": "4"})
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv444p"
        for image in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write(folder, version, videos=True):
    other.write_lerobot(folder, version, LENGTHS)
    info = {
        "codebase_version": f"v{version}",
        "fps": FPS,
        "chunks_size": 1000,
        "features": {
            KEY: {"dtype": "video", "shape": [H, W, 3]},
            "observation.images.side": {"dtype": "video", "shape": [H, W, 3]},
            "observation.state": {"dtype": "float32", "shape": [2]},
        },
    }
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    every = [[frame(i, t) for t in range(length)] for i, (_, length) in enumerate(LENGTHS)]
    if not videos:
        return folder
    if version == "2.1":
        for i, frames in enumerate(every):
            write_video(folder / "videos" / "chunk-000" / KEY / f"episode_{i:06d}.mp4", frames)
        return folder
    # the first two episodes share a video, the third has another
    place = folder / "videos" / KEY / "chunk-000"
    write_video(place / "file-000.mp4", every[0] + every[1])
    write_video(place / "file-001.mp4", every[2])
    rows = {
        "episode_index": [0, 1, 2],
        f"videos/{KEY}/chunk_index": [0, 0, 0],
        f"videos/{KEY}/file_index": [0, 0, 1],
        f"videos/{KEY}/from_timestamp": [0.0, LENGTHS[0][1] / FPS, 0.0],
    }
    (folder / "meta" / "episodes" / "file-000.parquet").unlink()
    episodes = folder / "meta" / "episodes" / "chunk-000"
    episodes.mkdir()
    halves = [{name: values[i::2] for name, values in rows.items()} for i in range(2)]
    for i, half in enumerate(halves):
        pq.write_table(pa.table(half), episodes / f"file-{i:03d}.parquet")
    return folder


@pytest.mark.parametrize("version", ["2.1", "3.0"])
def test_frames_are_those_of_their_steps(tmp_path, version):
    found = read(write(tmp_path / "set", version), spaces=spaces())
    assert [len(episode) for episode in found] == [length for _, length in LENGTHS]
    for i, episode in enumerate(found):
        images = episode.observations["images/top"]
        assert images.dtype == np.uint8
        for t in range(len(episode)):
            assert np.abs(images[t].astype(int) - frame(i, t)).max() <= 3
        assert episode.observations["state"].shape == (len(episode), 2)


def test_frames_have_the_axes_of_the_space(tmp_path):
    found = read(write(tmp_path / "set", "3.0"), spaces=spaces((3, H, W)))
    images = found[1].observations["images/top"]
    assert images.shape == (7, 3, H, W)
    assert np.abs(images[6].astype(int) - frame(1, 6).transpose(2, 0, 1)).max() <= 3


def test_cameras_that_are_not_asked_for_are_not_read(tmp_path):
    folder = write(tmp_path / "set", "2.1", videos=False)
    space = Dict(state=Box(-99, 99, (2,)), rest=Box(-99, 99, (1,)))
    found = read(folder, spaces=(space, ACTIONS))
    assert set(found[0].observations) == {"state", "rest"}


def damage(folder):
    path = folder / "videos" / "chunk-000" / KEY / "episode_000001.mp4"
    path.write_bytes(path.read_bytes()[:200])


def shorten(folder):
    path = folder / "videos" / "chunk-000" / KEY / "episode_000001.mp4"
    write_video(path, [frame(1, t) for t in range(5)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "videos" / "chunk-000" / KEY / "episode_000001.mp4").unlink(),
         "episode_000001.parquet: its camera's video .*episode_000001.mp4 cannot be opened"),
        (damage, "episode_000001.mp4: it cannot be decoded"),
        (shorten, r"episode_000001.mp4, episode 1: it has no frame at 0.500 s, which step 5 needs"),
        (lambda f: (f / "meta" / "info.json").write_text("{"), "meta/info.json is damaged"),
        (lambda f: (f / "meta" / "info.json").write_text("{}"), "images/top"),
    ],
)  # fmt: skip
def test_videos_that_lack_something_are_refused_by_name(tmp_path, change, message):
    folder = write(tmp_path / "set", "2.1")
    change(folder)
    with pytest.raises(DataError, match=message):
        read(folder, spaces=spaces())


def test_names_of_cameras_are_no_paths(tmp_path):
    folder = write(tmp_path / "set", "2.1")
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"]["observation.../../x"] = {"dtype": "video"}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    odd = Dict(**spaces()[0].spaces)
    read(folder, spaces=(odd, ACTIONS))  # not asked for


def test_episodes_without_a_place_are_refused(tmp_path):
    folder = write(tmp_path / "set", "3.0")
    (folder / "meta" / "episodes" / "chunk-000" / "file-001.parquet").unlink()
    with pytest.raises(DataError, match=f"episode 1: meta/episodes does not say .*{KEY}"):
        read(folder, spaces=spaces())
