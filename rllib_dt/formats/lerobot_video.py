"""Decodes the cameras of LeRobot's data sets, which are videos beside the tables.

v2.1 has a video for each episode and camera; in v3.0 a video holds many episodes, and
`meta/episodes` says from which second on. Frames are found by their time: step t of an episode is
shown at its beginning plus t / fps.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import ReadOptions
from rllib_dt.formats.parquet_input import open_parquet
from rllib_dt.types import Array, JsonObject

Beside = Callable[[str], IO[bytes]]
"""Opens a file by its path relative to the folder of the table."""

_ROOT = "../.."
_KEY = re.compile(r"[\w.-]+")
_CHUNK = 1000
"""Episodes in a folder, unless `meta/info.json` says otherwise."""


@dataclass(frozen=True)
class _Place:
    """Where an episode's frames are: a video, and its second at which they begin."""

    path: str
    begins: float


class Cameras:
    """The cameras of one table's episodes that are wanted and recorded as video.

    Args:
        source: the table's file, for messages.
        options: its `observed.only` and `shapes` say which leaves are wanted, and in which shape.
        present: the table's own columns.
        prefix: of the columns that are observations ("observation.").
        beside: opens files by their path relative to the table; None if there are none.
    """

    def __init__(
        self,
        source: str,
        options: ReadOptions,
        present: set[str],
        prefix: str,
        beside: Beside | None,
    ):
        self._source, self._options = source, options
        self._beside = beside
        self._keys: dict[str, str] = {}
        self._videos: dict[str, _Video] = {}
        self._places: dict[int, Mapping[str, _Place]] | None = None
        only = options.observed.only
        if beside is None or only is None:
            return
        info = self._info()
        features = info.get("features")
        for key, feature in (features if isinstance(features, dict) else {}).items():
            leaf = str(key).removeprefix(prefix).replace(".", "/")
            is_video = isinstance(feature, dict) and feature.get("dtype") == "video"
            if is_video and leaf in only and key not in present and str(key).startswith(prefix):
                if not _KEY.fullmatch(key):
                    raise self._error(f"the camera {key!r} is no name of a folder", "rename it")
                self._keys[leaf] = key
        fps = info.get("fps")
        if self._keys and not (isinstance(fps, int | float) and 0 < fps <= 1e5):
            raise self._error(f"meta/info.json has fps={fps!r}", "write the frames per second")
        self._fps = float(fps) if isinstance(fps, int | float) else 1.0
        size = info.get("chunks_size")
        self._chunk = size if isinstance(size, int) and size > 0 else _CHUNK
        self._is_shared = str(info.get("codebase_version", "")).startswith("v3")

    def leaves(self, episode: str | None, start: int, count: int) -> dict[str, Array]:
        """Returns the frames of consecutive steps by leaf: (n, H, W, 3) uint8, or (n, 3, H, W).

        Raises:
            DataError: a video is missing or damaged, or lacks a frame.
            ImportError: the decoder is not installed.
        """
        return {
            leaf: self._frames(leaf, key, episode, start, count) for leaf, key in self._keys.items()
        }

    def close(self) -> None:
        """Closes the videos."""
        for video in self._videos.values():
            video.close()

    def _frames(self, leaf: str, key: str, episode: str | None, start: int, count: int) -> Array:
        place = self._place(key, int(episode or 0))
        first = round(place.begins * self._fps) + start
        video = self._videos.get(leaf)
        if video is None or video.path != place.path or first < video.place:
            if video is not None:
                video.close()
            video = self._videos[leaf] = self._opened(place.path)
        frames = video.take(first, count, episode, start)
        shape = self._options.shapes.get(f"obs/{leaf}")
        if shape is not None and shape == (3, *frames.shape[1:3]) and shape != frames.shape[1:]:
            frames = frames.transpose(0, 3, 1, 2)
        return frames

    def _opened(self, path: str) -> "_Video":
        assert self._beside is not None
        try:
            file = self._beside(f"{_ROOT}/{path}")
        except DataError as error:
            raise self._error(
                f"its camera's video {path} cannot be opened ({error})", "download the data set"
            ) from error
        root = self._source.rsplit("/", 3)[0]
        return _Video(file, path, f"{root}/{path}", self._fps, self._options.max_expansion)

    def _place(self, key: str, episode: int) -> _Place:
        if not self._is_shared:
            chunk = episode // self._chunk
            return _Place(f"videos/chunk-{chunk:03d}/{key}/episode_{episode:06d}.mp4", 0.0)
        if self._places is None:
            self._places = dict(self._read_places())
        try:
            return self._places[episode][key]
        except KeyError:
            raise self._error(
                f"meta/episodes does not say where the frames of {key!r} are",
                "download the data set again",
                episode=str(episode),
            ) from None

    def _read_places(self) -> Iterator[tuple[int, Mapping[str, _Place]]]:
        """Yields where each episode's frames are, from all files of `meta/episodes`."""
        chunk = number = 0
        while True:
            path = f"meta/episodes/chunk-{chunk:03d}/file-{number:03d}.parquet"
            file = self._companion(path)
            if file is None:
                if number == 0:
                    return
                chunk, number = chunk + 1, 0
                continue
            number += 1
            with file:
                given = open_parquet(file, path, ReadOptions())
                columns = ("chunk_index", "file_index", "from_timestamp")
                names = {
                    (key, column): f"videos/{key}/{column}"
                    for key in self._keys.values()
                    for column in columns
                }
                absent = sorted({"episode_index", *names.values()} - set(given.schema.names))
                if absent:
                    raise self._error(f"{path} lacks {absent}", "download the data set again")
                table = given.read(["episode_index", *names.values()]).to_pylist()
            for row in table:
                yield (
                    int(row["episode_index"]),
                    {
                        key: _Place(
                            f"videos/{key}/chunk-{row[names[key, 'chunk_index']]:03d}/"
                            f"file-{row[names[key, 'file_index']]:03d}.mp4",
                            float(row[names[key, "from_timestamp"]]),
                        )
                        for key in self._keys.values()
                    },
                )

    def _info(self) -> JsonObject:
        file = self._companion("meta/info.json")
        if file is None:
            return {}
        with file:
            try:
                found = json.loads(file.read())
            except ValueError as error:
                raise self._error(
                    f"meta/info.json is damaged ({error})", "download it again"
                ) from error
        return found if isinstance(found, dict) else {}

    def _companion(self, path: str) -> IO[bytes] | None:
        """Opens a file of the data set; None if there is none."""
        assert self._beside is not None
        try:
            return self._beside(f"{_ROOT}/{path}")
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def _error(self, problem: str, remedy: str, episode: str | None = None) -> DataError:
        return DataError(self._source, problem, remedy, episode=episode)


class _Video:
    """An open video, decoded forwards.

    Attributes:
        path: its path in the data set.
        place: the number of the next frame that can be taken.
    """

    def __init__(self, file: IO[bytes], path: str, source: str, fps: float, max_expansion: float):
        try:
            import av
        except ImportError as error:
            raise ImportError(
                f"{source}: videos need a decoder: pip install 'rllib_dt[video]'"
            ) from error
        self.path, self.place = path, 0
        self._file, self._source, self._fps = file, source, fps
        self._expansion = Expansion(source, size_of(file), max_expansion)
        try:
            self._container: Any = av.open(file)
            self._stream = self._container.streams.video[0]
            self._decoded = self._container.decode(self._stream)
        # the decoder has errors of its own
        except Exception as error:
            raise self._damaged(error) from error
        self._begins = self._stream.start_time or 0

    def take(self, first: int, count: int, episode: str | None, step: int) -> Array:
        """Returns (count, H, W, 3) frames from a number on.

        Raises:
            DataError: the video is damaged, or lacks one of them.
        """
        frames: list[Array] = []
        try:
            while len(frames) < count:
                frame = next(self._decoded, None)
                if frame is None or frame.pts is None:
                    break
                seconds = float((frame.pts - self._begins) * self._stream.time_base)
                number = round(seconds * self._fps)
                if number > first + len(frames):
                    break
                self.place = number + 1
                if number == first + len(frames):
                    self._expansion.take(frame.width * frame.height * 3, "its frames")
                    frames.append(frame.to_ndarray(format="rgb24"))
        except DataError:
            raise
        except Exception as error:
            raise self._damaged(error) from error
        if len(frames) < count:
            lacking = first + len(frames)
            raise DataError(
                self._source,
                f"it has no frame at {lacking / self._fps:.3f} s, which step {step + len(frames)} "
                "needs",
                "download the data set again",
                episode=episode,
            )
        return np.stack(frames)

    def close(self) -> None:
        """Closes the file."""
        self._container.close()
        self._file.close()

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            self._source, f"it cannot be decoded ({error})", "download the data set again"
        )
