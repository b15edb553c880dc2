"""Runs from plain settings, and the commands train, evaluate and export."""

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from gymnasium.spaces import Box, Discrete
from ray.tune.search.sample import Float

from rllib_dt import DecisionTransformer, DTModelConfig, load_policy
from rllib_dt.cli.policies import _numbers
from rllib_dt.huggingface import save_pretrained
from rllib_dt.runs import default_run, make_run, read_run, recorded_environment
from tests import other_recordings as other
from tests.conftest import SHIPPED
from tests.test_report import command

pytest.importorskip("typer")
ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "environment": {"env": "CartPole-v1"},
    "offline_data": {"input_": str(SHIPPED), "dataset_num_iters_per_learner": 3},
    "model": {"context_length": 4, "hidden_size": 8, "n_layer": 1, "max_ep_len": 500},
    "training": {"train_batch_size_per_learner": 8, "return_scale": 100.0},
    "evaluation": {"target_returns": [100, 20], "evaluation_duration": 2,
                   "evaluation_interval": 1, "evaluation_num_env_runners": 0},
    "debugging": {"seed": 0},
    "tune": {"stop": {"training_iteration": 1}},
}  # fmt: skip


EXAMPLES = sorted((ROOT / "tuned_examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_shipped_settings_are_whole(path, tmp_path):
    run = read_run(path)
    config = run.config
    if not config.is_offline:  # its data is given on the command line
        config.offline_data(input_=str(SHIPPED))
    plain = re.sub(r"\{grid_search: \[([^,\]]+).*\}", r"\1", path.read_text())
    (tmp_path / "plain.yaml").write_text(plain)
    config = read_run(tmp_path / "plain.yaml").config
    config.offline_data(input_=str(SHIPPED))
    config.validate()
    assert set(run.tune) >= {"stop"}


def test_search_spaces_are_tunes():
    given = TINY | {
        "training": {"lr": {"loguniform": [1e-4, 1e-2]}, "weight_decay": {"choice": [0.1, 0.2]}},
        "model": TINY["model"] | {"n_layer": {"grid_search": [1, 2]}},
    }
    config = make_run(given).config
    assert isinstance(config.lr, Float)
    assert config.lr.lower == 1e-4
    assert config.weight_decay.categories == [0.1, 0.2]
    assert config.model_config["n_layer"] == {"grid_search": [1, 2]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "the settings are a NoneType, wanted sections"),
        ([], "the settings are a list"),
        ({"modle": {}}, "there is no section 'modle'; did you mean 'model'"),
        ({"model": {"hidden_sise": 3}}, "hidden_sise.*did you mean 'hidden_size'"),
        ({"training": {"learning_rate": 3}}, "section training: .*learning_rate"),
        ({"training": 3}, "section training holds 3, wanted names and values"),
        ({"tune": {"stopp": 3}}, "section tune has no setting 'stopp'; did you mean 'stop'"),
        ({"training": {"lr": {"uniform": 3}}}, "uniform takes a list of values, not 3"),
        ({"training": {"lr": {"grid_search": []}}}, "grid_search takes a list of values"),
        ({"training": {"lr": {"grid_serach": [1]}}}, "did you mean 'grid_search'"),
        ({"training": {"gama": 3}}, "section training: .*'gama'; did you mean 'gamma'"),
        ({"evaluation": {"evaluation_intervall": 3}}, "did you mean 'evaluation_interval'"),
        ({"model": {1: 2}}, "section model has names that are no text"),
        ({"tune": {"stop": {"traning_iteration": 1}}}, "did you mean 'training_iteration'"),
        ({"tune": {"stop": {"training_iteration": "x"}}}, "training_iteration='x', wanted a num"),
        ({"tune": {"stop": []}}, "tune's stop is"),
        ({"tune": {"num_samples": "x"}}, "tune's num_samples is 'x', wanted a whole number"),
        ({"tune": {"mode": "best"}}, "tune's mode is 'best'"),
    ],
)
def test_settings_that_there_are_not_are_refused(given, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(ValueError, match=message) as caught:
        read_run(path).config.dt_model_config  # noqa: B018
    if "hidden" not in message:
        assert str(path) in str(caught.value)


def test_a_file_of_settings_runs_no_code(tmp_path):
    path = tmp_path / "run.yaml"
    for text in ("a: !!python/object/apply:os.system ['true']", "a: [", "\x00"):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{path} is no YAML"):
            read_run(path)
    path.write_text("model: &a {x: *a}")
    with pytest.raises(ValueError, match="it refers to itself"):
        read_run(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_run(tmp_path / "none.yaml")


def test_targets_are_numbers_or_a_range():
    assert _numbers("50,-2.5") == [50, -2.5]
    assert _numbers("0:400:5") == [0, 100, 200, 300, 400]
    for text in ("", "a", "1:2", "1:2:x", "0:1:99999999999"):
        with pytest.raises(ValueError, match="give numbers, such as 50,200, or a range"):
            _numbers(text)


def minari_cartpole(folder, env="CartPole-v1", episodes=40):
    """Writes some of the shipped episodes as a Minari data set."""
    table = pq.read_table(next(SHIPPED.glob("*.parquet"))).slice(0, episodes).to_pylist()
    spaces = Box(-np.inf, np.inf, (4,), np.float32), Discrete(2)
    data = other.write_metadata(folder, spaces)
    metadata = json.loads((data / "metadata.json").read_text())
    spec = json.dumps({"id": env, "max_episode_steps": 500})
    (data / "metadata.json").write_text(json.dumps(metadata | {"env_spec": spec}))
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number, row in enumerate(table):
            group = file.create_group(f"episode_{number}")
            length = len(row["rewards"])
            observations = np.array(row["obs"], np.float32)
            if len(observations) == length:
                observations = np.concatenate([observations, observations[-1:]])
            ends = np.arange(length) == length - 1
            group["observations"] = observations
            group["actions"] = np.array(row["actions"])
            group["rewards"] = np.array(row["rewards"])
            group["terminations"] = ends & bool(row["terminated"])
            group["truncations"] = ends & ~bool(row["terminated"])
    return folder


def test_a_minari_set_names_its_environment(tmp_path, monkeypatch):
    folder = minari_cartpole(tmp_path / "sets" / "cartpole" / "mixed-v0")
    assert recorded_environment([str(folder)]) == "CartPole-v1"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    run = default_run("cartpole/mixed-v0", iterations=3)
    run.config.validate()
    assert run.config.env == "CartPole-v1"
    assert run.config.evaluation_interval == 3
    other_folder = minari_cartpole(tmp_path / "other", env="NotHere-v7", episodes=1)
    assert recorded_environment([str(other_folder)]) is None
    assert default_run(str(other_folder)).config.env is None
    assert recorded_environment([str(SHIPPED)]) is None


@pytest.mark.slow
def test_commands_train_evaluate_and_export(cluster, tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "tiny.yaml", tmp_path / "runs" / "tiny"
    path.write_text(yaml.safe_dump(TINY))
    code, text, errors = command(monkeypatch, capsys, "train", path, "--out", out)
    assert code == 0, errors
    assert "iteration 1/1  loss " in errors
    assert re.search(r"^ +100 +\d+\.\d ± \d+\.\d +2$", text, re.MULTILINE)
    assert "mean absolute error" in text
    checkpoint = Path(text.split("checkpoint: ")[1].strip())
    assert checkpoint.parent.parent == out
    plot, numbers = tmp_path / "targets.png", tmp_path / "targets.json"
    code, text, errors = command(
        monkeypatch, capsys, "evaluate", out, "--targets", "10:110:6", "--episodes", 1,
        "--plot", plot, "--json", numbers,
    )  # fmt: skip
    assert code == 0, errors
    found = json.loads(numbers.read_text())
    assert list(map(float, found)) == [10, 30, 50, 70, 90, 110]
    assert all(result["num_episodes"] == 1 for result in found.values())
    assert plot.stat().st_size > 10_000
    code, _, errors = command(monkeypatch, capsys, "export", out, tmp_path / "hf")
    assert code == 0, errors
    assert load_policy(tmp_path / "hf").network.config.context_length == 4


def test_a_hugging_face_folder_is_evaluated(cluster, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    config = DTModelConfig(hidden_size=8, n_layer=1, max_ep_len=200)
    spaces = Box(-np.inf, np.inf, (3,)), Box(-2.0, 2.0, (1,))
    save_pretrained(DecisionTransformer(config, *spaces), tmp_path / "hf")
    words = ["evaluate", tmp_path / "hf", "--targets", "-900", "--episodes", 1]
    code, _, errors = command(monkeypatch, capsys, *words)
    assert code == 1
    assert "names no environment; give one" in errors
    code, text, errors = command(monkeypatch, capsys, *words, "--env", "Pendulum-v1")
    assert code == 0, errors
    assert re.search(r"-900 +-\d+", text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "give a YAML file, or recordings with --data"),
        (["train", "nowhere.yaml"], "there is no file nowhere.yaml"),
        (["train", "tuned_examples/cartpole.yaml", "--env", "Cartpole-v1"],
         "there is no environment 'Cartpole-v1'; did you mean 'CartPole-v1'"),
        (["train", "tuned_examples/cartpole.yaml", "--data", "nowhere"],
         "there is no such file or folder"),
        (["evaluate", "nowhere"], "there is no folder nowhere"),
        (["evaluate", "tests"], "tests holds neither a checkpoint nor a Hugging Face folder"),
        (["evaluate", "tests", "--targets", "many"], "give numbers, such as 50,200"),
        (["export", "nowhere", "a.onnx"], "there is no folder nowhere"),
        (["serve", "nowhere"], "there is no such folder"),
    ],
)  # fmt: skip
def test_errors_of_commands_are_one_line(cluster, words, message, monkeypatch, capsys):
    code, _, errors = command(monkeypatch, capsys, *words)
    assert code == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["train", "evaluate", "export", "serve"])
def test_help_shows_an_example(name, monkeypatch, capsys):
    code, text, _ = command(monkeypatch, capsys, name, "--help")
    assert code == 0
    assert f"rllib-dt {name} " in text


@pytest.mark.slow
def test_from_a_minari_folder_to_achieved_returns_in_three_commands(tmp_path):
    """The first is the installation, as in the README."""
    minari_cartpole(tmp_path / "cartpole")
    text = (ROOT / "README.md").read_text()
    block = next(b for b in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "--data" in b)
    install, train, evaluate = block.strip().splitlines()
    assert install.startswith("pip install ")
    assert train.startswith("rllib-dt train --data ")
    bin_ = Path(sys.executable).parent
    for line in (train.replace("my-minari-folder", "cartpole --iterations 1"), evaluate):
        words = line.partition("#")[0].split()
        done = subprocess.run(
            [bin_ / words[0], *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"target +achieved +episodes", done.stdout)
    assert "mean absolute error" in done.stdout
