"""Encoders of users' own, and text, which they alone can read."""

import itertools
import json

import gymnasium as gym
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Text
from torch import nn

from rllib_dt import DT, DTConfig, write_episodes
from rllib_dt.episodes.episode import DataError
from rllib_dt.policy.actor import Actor
from rllib_dt.spaces.trees import (
    LeafChoice,
)
from tests.composites import config_of, windows
from tests.environments import Sampled
from tests.recordings import read, refused
from tests.test_spaces import network
from tests.training import same, weights


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


class Lazy(Raw):
    """Makes a table when it is first needed, and keeps it."""

    table = None

    def forward(self, values):
        if self.table is None:
            self.table = torch.linspace(0.5, 1.5, self.linear.out_features)
        return super().forward(values) * self.table


class Inner(Raw):
    """Takes a gradient within its forward pass."""

    def forward(self, values):
        with torch.enable_grad():
            given = values.flatten(2).float().requires_grad_()
            (slope,) = torch.autograd.grad(given.square().sum(), given)
        return self.linear(slope)


def make_something(space, width):
    return "no module"


NAMED = "tests.test_own_encoders."
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


@pytest.mark.parametrize("encoder", ["Lazy", "Inner"])
@pytest.mark.parametrize("attention", ["context", "window"])
def test_a_network_that_has_acted_can_be_trained(encoder, attention):
    space = Box(-1.0, 1.0, (3,))
    net = network(space, Discrete(2), attention=attention, encoders={"": NAMED + encoder})
    assert Actor(net, 1.0, num_envs=2).predict(np.zeros((2, 3), np.float32)).shape == (2,)
    shape = 2, net.config.window_length
    outputs = net.train()(
        observations=torch.rand(*shape, 3),
        actions=torch.zeros(shape, dtype=torch.long),
        returns_to_go=torch.ones(*shape, 1),
        timesteps=torch.zeros(shape, dtype=torch.long),
    )
    outputs.action_preds.sum().backward()
    assert net.embed_state.module.linear.weight.grad.abs().sum() > 0


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
    elif form == "hdf5":
        with h5py.File(folder / "a.hdf5", "w") as file:
            file["observations/seen"] = np.array([row["obs"]["seen"] for row in rows])
            file["observations/words"] = [row["obs"]["words"] for row in rows]
            for theirs, ours in (("actions",) * 2, ("rewards",) * 2, ("terminals", "terminateds")):
                file[theirs] = np.array([row[ours] for row in rows])
            file["timeouts"] = np.zeros(len(rows), bool)
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


@pytest.mark.parametrize("form", ["json", "structs", "columns", "canonical", "hdf5"])
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
        with refused(
            "words.* holds text or bytes|words.* holds values that are not numbers|ignore"
        ):
            read(path)
        short = gym.spaces.Dict(seen=SPOKEN["seen"], words=Text(1, charset="a"))
        with pytest.raises(DataError, match=r"observations/words: the text .* is longer than Text"):
            episodes[0].conform(short, Discrete(2))
        numbers = gym.spaces.Dict(seen=SPOKEN["seen"], words=Box(0, 1, ()))
        with pytest.raises(DataError, match="observations/words hold text, but the space is Box"):
            episodes[0].conform(numbers, Discrete(2))


def test_one_long_text_is_not_padded_without_a_limit(tmp_path):
    rows = [row | {"obs": row["obs"] | {"words": "a"}} for row in spoken_rows()] * 100
    rows[3]["obs"] = rows[3]["obs"] | {"words": "a" * 2**20}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with refused(r"column 'obs/words' takes the file past \d+ MiB"):
        read(tmp_path / "a.parquet", observed=LeafChoice(texts=("words",)))


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
