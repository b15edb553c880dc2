"""Data cards, conversion, and their commands."""

import re
import sys

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from rllib_dt import convert, report, write_episodes
from rllib_dt.cli import main
from rllib_dt.formats.recorded_spaces import recorded_spaces
from tests import other_recordings as other
from tests.other_recordings import EPISODES
from tests.recordings import ACTIONS, OBSERVATIONS, arrays, check, ends, read, refused, write_d4rl
from tests.scripts import run_script

SPACES = OBSERVATIONS, ACTIONS


def episode(number, length, *, truncated=False, **changes):
    flags = dict(terminated=not truncated, truncated=truncated)
    return arrays(number, length) | flags | changes


def test_a_card_says_what_the_data_holds(tmp_path):
    folder = other.write_minari_hdf5(tmp_path)
    card = report(str(folder))
    rewards = [arrays(*e)["rewards"].sum() for e in EPISODES]
    assert card.returns.tolist() == rewards
    assert card.lengths.tolist() == [5, 1, 7]
    assert (card.num_files, card.num_terminated, card.num_truncated) == (1, 2, 1)
    assert card.spaces == SPACES
    every = np.concatenate([arrays(*e)["obs"] for e in EPISODES])
    np.testing.assert_array_equal(card.leaves["obs"].low, every.min(axis=0))
    np.testing.assert_array_equal(card.leaves["obs"].high, every.max(axis=0))
    assert card.target_returns == [max(rewards), *np.quantile(rewards, [0.75, 0.5])]
    assert card.return_scale == max(rewards)
    counts, edges = card.histogram(3)
    assert (counts.sum(), edges[0], edges[-1]) == (3, min(rewards), max(rewards))
    text = str(card)
    assert "3 episodes, 13 steps in 1 files" in text
    assert f"target_returns=[{max(rewards):.6g}, " in text
    assert card.odd == []


@pytest.mark.parametrize(
    ("episodes", "spaces", "message"),
    [
        ([episode(1, 3), episode(1, 3)], SPACES, "1 episodes are copies of others"),
        ([episode(1, 3), episode(1, 2)], SPACES, r"obs: components \[1\] never change"),
        (
            [episode(n, 3, actions=np.full((3, 2), [1.0, n / 9])) for n in (1, 2)],
            SPACES,
            r"actions: 50.0% of the values lie at a bound of the space",
        ),
        (
            [episode(n, 3) for n in (1, 2)],
            (OBSERVATIONS, Box(-2.0, 2.0, (2,))),
            r"all actions lie in \[-1, 1\] of a wider space",
        ),
        (
            [episode(n, 6) for n in (1, 2, 3)],
            SPACES,
            "3 of 3 episodes terminate at the largest length, 6: a time limit may be marked",
        ),
        (
            [episode(n, 3 + n, rewards=np.zeros(3 + n)) for n in (1, 2)],
            SPACES,
            "all returns are 0: there is nothing to condition on",
        ),
    ],
)
def test_a_card_names_what_is_odd(tmp_path, episodes, spaces, message):
    write_episodes(episodes, tmp_path, *spaces)
    odd = report(str(tmp_path)).odd
    assert [line for line in odd if re.search(message, line)]


def test_what_is_not_odd_is_not_named(tmp_path):
    episodes = [episode(n, 2 + n, truncated=n == 3) for n in (1, 2, 3)]
    write_episodes(episodes, tmp_path, *SPACES)
    assert report(str(tmp_path)).odd == []


def test_a_card_goes_on_behind_what_training_would_refuse(tmp_path):
    write_episodes([episode(1, 3), episode(2, 4)], tmp_path / "a", *SPACES)
    write_d4rl(tmp_path / "b.hdf5", (5, 3), terminals=(4,), timeouts=(7,))
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    card = report(str(tmp_path))
    assert (len(card.returns), card.num_files) == (4, 3)
    assert any("c.parquet" in line for line in card.odd)
    other_space = report(str(tmp_path), spaces=(Box(-9.0, 9.0, (7,)), ACTIONS))
    assert len(other_space.returns) == 0
    assert any("but the space is Box(-9.0, 9.0, (7,)" in line for line in other_space.odd)
    assert "there is no whole episode" in other_space.odd
    with refused("there is no such file"):
        report(str(tmp_path / "nowhere"))


def test_settings_and_their_counts_are_on_the_card(tmp_path):
    path = other.write_ogbench(tmp_path / "a.npz")
    assert any("it has no rewards" in line for line in report(str(path)).odd)
    card = report(str(path), missing_rewards="success")
    assert card.returns.tolist() == [1.0, 1.0, 1.0]
    assert card.choices == {"steps whose reward missing_rewards='success' gave": 13}
    assert "steps whose reward missing_rewards='success' gave: 13" in str(card)


def test_a_card_is_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    other.write_minari_hdf5(tmp_path)
    report(str(tmp_path)).plot(tmp_path / "card.png")
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")


def test_cards_and_conversion_need_no_ray(tmp_path):
    folder = other.write_minari_hdf5(tmp_path / "set")
    out = run_script(
        """
        import sys
        import rllib_dt
        card = rllib_dt.report(sys.argv[1])
        rllib_dt.convert(sys.argv[1], sys.argv[2])
        loaded = sorted({m.split(".")[0] for m in sys.modules} & {"ray", "torch"})
        print(len(card.returns), loaded)
        """,
        folder,
        tmp_path / "out",
    )
    assert out.strip() == "3 []"


# ---- conversion


@pytest.mark.parametrize(
    "write",
    [other.write_minari_hdf5, other.write_d3rlpy, other.write_imitation],
    ids=lambda write: write.__name__,
)
def test_what_is_converted_reads_as_before(tmp_path, write):
    source = write(tmp_path / "a.npz" if write is other.write_imitation else tmp_path / "a.h5")
    seen = []
    files = convert(
        str(source), tmp_path / "out", spaces=SPACES, on_episode=lambda *each: seen.append(each)
    )
    before, after = read(source).episodes, read(tmp_path / "out").episodes
    assert [e.id for e in before] == [e.id for e in after]
    assert ends(before) == ends(after)
    for one, (number, length) in zip(after, EPISODES, strict=True):
        check(one, number, length, last=write is not other.write_d3rlpy)
    assert len(files) == 1
    assert seen == [(5, 0.0), (1, 0.0), (7, 0.0)]
    assert recorded_spaces(str(tmp_path / "out")) == SPACES


def test_composite_values_are_converted(tmp_path):
    spaces = Dict(position=Box(-99.0, 99.0, (2,)), rest=Box(-99.0, 99.0, (1,))), ACTIONS
    convert(str(other.write_robomimic(tmp_path / "a.hdf5")), tmp_path / "out", spaces=spaces)
    (first, *_) = read(tmp_path / "out").episodes
    np.testing.assert_array_equal(first.observations["position"], arrays(2, 5)["obs"][:, :2])


def test_conversion_refuses_what_training_would(tmp_path):
    with pytest.raises(ValueError, match="does not describe its spaces"):
        convert(str(other.write_imitation(tmp_path / "a.npz")), tmp_path / "out")
    spaces = OBSERVATIONS, Discrete(2)
    with refused("a.npz, episode 0: actions have the shape"):
        convert(str(tmp_path / "a.npz"), tmp_path / "out", spaces=spaces)


# ---- commands


def command(monkeypatch, capsys, *words):
    """Runs a command; returns its exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["rllib-dt", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        main()
    out, errors = capsys.readouterr()
    return done.value.code, out, errors


def test_commands_inspect_and_convert(tmp_path, monkeypatch, capsys):
    pytest.importorskip("typer")
    folder = other.write_minari_hdf5(tmp_path / "sets" / "walk-v0")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    plot = tmp_path / "card.png"
    code, out, _ = command(monkeypatch, capsys, "inspect", "walk-v0", "--plot", plot)
    assert (code, out) == (0, f"{report(str(folder))}\n")
    assert plot.exists()
    code, out, _ = command(monkeypatch, capsys, "convert", "walk-v0", tmp_path / "out")
    assert (code, out) == (0, f"3 episodes, 13 steps -> 1 files in {tmp_path / 'out'}\n")
    assert len(read(tmp_path / "out").episodes) == 3


def test_exit_codes_and_errors_of_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("typer")
    path = other.write_imitation(tmp_path / "a.npz")
    out = tmp_path / "out"
    for words, message in (
        (["inspect", tmp_path / "nowhere"], "there is no such file or folder"),
        (["convert", path, out], "the data does not describe its spaces"),
        (["convert", path, out, "--env", "Nothing-v9"], "the environment 'Nothing-v9' cannot be"),
        (["inspect", path, "--last-row", "maybe"], "last_row='maybe' is not one of"),
        (["inspect", path, "--missing-rewards", "many"], "could not convert string to float"),
    ):
        code, _, errors = command(monkeypatch, capsys, *words)
        assert code == 1
        assert errors.startswith("error: ")
        assert message in errors
        assert errors.count("\n") == 1
        code, _, errors = command(monkeypatch, capsys, *words, "--debug")
        assert code == 1
        assert "Traceback" in errors
    for words in (["inspect"], ["nothing"], ["inspect", path, "--no-such-option"]):
        assert command(monkeypatch, capsys, *words)[0] == 2
    for words in (["--help"], ["inspect", "--help"], ["convert", "--help"]):
        code, text, _ = command(monkeypatch, capsys, *words)
        assert (code, "Usage" in text) == (0, True)
    assert "rllib-dt convert expert_cartpole.npz" in text
