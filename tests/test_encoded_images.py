"""Images that a recording holds as PNG or JPEG."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import Box, Discrete
from PIL import Image

from rllib_dt.spaces.trees import (
    by_leaf,
)
from tests.composites import (
    config_of,
)
from tests.environments import Sampled
from tests.recordings import read, refused


def encoded(image, form="PNG", mode=None):
    file = io.BytesIO()
    picture = Image.fromarray(image)
    (picture if mode is None else picture.convert(mode)).save(file, form)
    return file.getvalue()


def write_images(path, images, column="obs"):
    """One row for each step, in episodes of 3."""
    steps = len(images)
    columns = {
        column: images,
        "actions": [0] * steps,
        "rewards": [1.0] * steps,
        "terminateds": [t % 3 == 2 for t in range(steps)],
    }
    pq.write_table(pa.table(columns), path)
    return path


COLOURED = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)
GREY = COLOURED[..., 0].copy()


@pytest.mark.parametrize(
    ("images", "mode"),
    [(COLOURED, None), (GREY, None), (COLOURED, "RGBA")],
    ids=["RGB", "grey", "RGBA"],
)
@pytest.mark.parametrize("form", ["bytes", "struct", "leaf"])
def test_images_as_png_read_exactly(tmp_path, images, mode, form):
    values = [encoded(image, mode=mode) for image in images]
    if form == "struct":
        values = [{"bytes": value, "path": f"{i}.png"} for i, value in enumerate(values)]
    column, leaf = ("obs/camera", "camera") if form == "leaf" else ("obs", "")
    episodes = read(write_images(tmp_path / "a.parquet", values, column)).episodes
    got = np.concatenate([by_leaf(episode.observations)[leaf] for episode in episodes])
    opaque = np.full((6, 8, 9, 1), 255)
    want = images if mode is None else np.concatenate([images, opaque], axis=-1)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.uint8
    if images is GREY and form == "bytes":  # an axis of one channel
        space = Box(0, 255, (8, 9, 1), np.uint8)
        assert episodes[0].conform(space, Discrete(2)).observations.shape == (3, 8, 9, 1)


def test_images_as_jpeg_and_with_a_palette_are_read(tmp_path):
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8)[None].repeat(3, axis=0)
    path = write_images(tmp_path / "a.parquet", [encoded(image, "JPEG") for image in smooth])
    (episode,) = read(path).episodes
    assert np.abs(episode.observations.astype(int) - smooth).max() < 8
    flags = (GREY[:3] > 128).astype(np.uint8) * 255
    path = write_images(tmp_path / "b.parquet", [encoded(flag, mode="1") for flag in flags])
    np.testing.assert_array_equal(read(path).episodes[0].observations, flags)
    path = write_images(tmp_path / "c.parquet", [encoded(flag, mode="P") for flag in flags])
    np.testing.assert_array_equal(
        read(path).episodes[0].observations, flags[..., None].repeat(3, axis=-1)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.__setitem__(2, v[2][:60]), "the image in row 2 cannot be decoded"),
        (lambda v: v.__setitem__(2, b"something else"), "row 2 cannot be decoded .it is neither"),
        (lambda v: v.__setitem__(2, encoded(GREY[0])), r"row 2 has the shape \(8, 9\), the first"),
        (lambda v: v.__setitem__(2, None), "has 1 missing values, the first in row 2"),
    ],
)
def test_images_that_cannot_be_used_are_named(tmp_path, change, message):
    values = [encoded(image) for image in COLOURED]
    change(values)
    path = write_images(tmp_path / "a.parquet", values)
    with refused(f"a.parquet: column 'obs'.*{message}"):
        read(path)


def test_an_image_that_expands_too_far_is_refused(tmp_path):
    value = encoded(np.zeros((6000, 6000), np.uint8))
    assert len(value) < 100_000
    path = write_images(tmp_path / "a.parquet", [value] * 9)
    with refused("column 'obs' takes the file past 256 MiB"):
        read(path)


def test_encoded_images_are_trained_on(cluster, tmp_path):
    write_images(tmp_path / "a.parquet", [encoded(image) for image in COLOURED])
    spaces = {"observation_space": Box(0, 255, (8, 9, 3), np.uint8), "action_space": Discrete(2)}
    config = config_of(Sampled, spaces, tmp_path / "a.parquet")
    algo = config.build_algo()
    assert np.isfinite(algo.train()["learners"]["default_policy"]["action_loss"])
    algo.stop()
