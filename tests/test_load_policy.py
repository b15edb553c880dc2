"""A policy out of a checkpoint acts as RLlib's evaluation does, and needs no Ray."""

import json
import math
import os
import pickle
import shutil

import gymnasium as gym
import msgpack
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from ray import tune
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_dt import DecisionTransformer, DTModelConfig, DTTorchRLModule, load_policy
from rllib_dt.huggingface import save_pretrained
from rllib_dt.policy.actor import Actor
from rllib_dt.policy.context import Contexts
from rllib_dt.policy.manifest import MANIFEST, CheckpointError
from rllib_dt.policy.policy import as_tensors
from tests.conftest import cartpole_config, tiny_config
from tests.scripts import run_script
from tests.test_actor import played
from tests.training import learner_results

MODULE = "learner_group/learner/rl_module/default_policy"
SPACES_OF_CARTPOLE = Box(-np.inf, np.inf, (4,)), Discrete(2)
SMALL = dict(context_length=3, n_layer=1, n_head=1, hidden_size=8)


@pytest.fixture(scope="module")
def trained(cluster, tmp_path_factory):
    """Checkpoints of CartPole by kind of attention, with what RLlib's evaluation reached."""
    found = {}
    for attention in ("context", "window"):
        algo = cartpole_config(attention=attention).build_algo()
        learner_results(algo, 2)
        reached = algo.evaluate()["env_runners"]["by_target"]
        path = tmp_path_factory.mktemp("checkpoints") / attention
        found[attention] = algo.save_to_path(str(path)), reached
        algo.stop()
    return found


@pytest.mark.semantics(2, 22, 24)
@pytest.mark.parametrize("attention", ["context", "window"])
def test_a_loaded_policy_plays_the_episodes_of_rllibs_evaluation(trained, attention):
    path, reached = trained[attention]
    policy = load_policy(path)
    assert policy.target_returns == tuple(map(float, reached))
    seeds = [int(s) for s in np.random.SeedSequence(0).generate_state(4)]
    env = gym.make("CartPole-v1", max_episode_steps=40)
    for target, result in reached.items():
        returns = [played(env, policy.actor(float(target)), seed)[0] for seed in seeds]
        assert np.mean(returns) == result["episode_return_mean"]
        assert np.std(returns) == result["episode_return_std"]


def test_targets_that_were_derived_from_the_data_are_in_the_checkpoint(
    cluster, tiny_data, tmp_path
):
    algo = tiny_config(tiny_data[0]).build_algo()
    derived = algo.target_returns
    policy = load_policy(algo.save_to_path(str(tmp_path / "checkpoint")))
    algo.stop()
    assert policy.target_returns == tuple(derived)
    assert len(derived) > 0
    observation = np.zeros(3, np.float32)
    np.testing.assert_array_equal(
        policy.actor().predict(observation), policy.actor(derived[0]).predict(observation)
    )


def test_loading_and_acting_import_no_ray(trained):
    out = run_script(
        """
        import sys, time
        import torch, gymnasium, numpy as np
        started = time.perf_counter()
        import rllib_dt
        policy = rllib_dt.load_policy(sys.argv[1])
        actor = policy.actor(20.0, num_envs=2)
        action = actor.predict(np.zeros((2, 4), np.float32))
        loaded = sorted(m for m in sys.modules if m.split(".")[0] in ("ray", "pyarrow", "h5py"))
        print(action.shape, loaded)
        """,
        trained["context"][0],
    )
    assert out.strip() == "(2,) []"


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["import rllib_dt; from ray import tune", "from ray import tune; import rllib_dt",
              "import rllib_dt; from ray.rllib.algorithms.ppo import PPOConfig",
              "from rllib_dt import DT; from ray import tune"],
)  # fmt: skip
def test_the_algorithm_is_registered_whatever_is_imported_first(first):
    out = run_script(
        f"""
        {first}
        from ray.tune.registry import get_trainable_cls
        import rllib_dt, ray.tune
        print(get_trainable_cls("DT") is rllib_dt.DT, type(ray.tune.__spec__.loader).__name__)
        """
    )
    assert out.strip() == "True SourceFileLoader"


def test_a_checkpoint_in_msgpack_acts_as_one_of_pickles(cluster, tiny_data, tmp_path):
    algo = tiny_config(tiny_data[0]).build_algo()
    paths = [
        algo.save_to_path(str(tmp_path / name), use_msgpack=name == "packed")
        for name in ("pickled", "packed")
    ]
    algo.stop()
    assert (tmp_path / "packed" / MODULE / "module_state.msgpack").is_file()
    first, second = (load_policy(path) for path in paths)
    assert first.target_returns == second.target_returns
    for name, value in first.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value)
    # an array of objects is a pickle within
    held = {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": b"\x80\x04N."}
    state = tmp_path / "packed" / MODULE / "module_state.msgpack"
    state.write_bytes(msgpack.packb({"network.return_scale": held}))
    for content, message in ((state.read_bytes(), "arrays of"), (b"\xc1", "cannot be read")):
        state.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_policy(tmp_path / "packed" / MODULE)


def test_a_module_alone_and_a_folder_of_hugging_face_load_too(trained, tmp_path):
    path, _ = trained["context"]
    whole = load_policy(path)
    module = load_policy(f"{path}/{MODULE}")
    assert module.target_returns == ()
    save_pretrained(whole.network, tmp_path / "folder")
    folder = load_policy(tmp_path / "folder")
    observation = np.array([0.1, -0.2, 0.3, 0.0], np.float32)
    for other in (module, folder):
        assert other.action_space == whole.action_space == Discrete(2)
        for name, weight in other.network.state_dict().items():
            torch.testing.assert_close(weight, whole.network.state_dict()[name], rtol=0, atol=0)
        action = other.actor(20.0).predict(observation)
        assert action == whole.actor(20.0).predict(observation)
    with pytest.raises(ValueError, match="give a target_return"):
        module.actor()


def test_a_policy_that_leaves_a_text_out_loads(tmp_path):
    space = Dict(obs=Box(-1.0, 1.0, (3,)), mission=Text(10))
    settings = dict(SMALL, ignore=["mission"])
    module = DTTorchRLModule(
        observation_space=space, action_space=Discrete(2), model_config=settings
    )
    actor = load_policy(module.save_to_path(tmp_path / "module")).actor(1.0)
    action = actor.predict({"obs": np.zeros(3, np.float32), "mission": "go"})
    assert action in Discrete(2)


def test_the_last_complete_checkpoint_of_a_trial_is_taken(cluster, tiny_data, tmp_path):
    results = tune.Tuner(
        "DT",
        param_space=tiny_config(tiny_data[0]),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            name="run",
            stop={"training_iteration": 2},
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
        ),
    ).fit()
    (result,) = results
    of_result, of_trial, of_run = (
        load_policy(path).network.state_dict()
        for path in (result.checkpoint.path, result.path, tmp_path / "run")
    )
    for name, weight in of_result.items():
        assert torch.equal(weight, of_trial[name])
        assert torch.equal(weight, of_run[name])
    checkpoints = sorted(name for name in os.listdir(result.path) if name.startswith("check"))
    assert len(checkpoints) == 2
    os.remove(f"{result.path}/{checkpoints[1]}/{MANIFEST}")  # it was being written
    first = load_policy(result.path).network.state_dict()
    assert any(not torch.equal(first[name], weight) for name, weight in of_result.items())
    shutil.copytree(result.path, tmp_path / "run" / "other")
    with pytest.raises(FileNotFoundError, match="holds 2 trials with checkpoints; give one"):
        load_policy(tmp_path / "run")


def test_rllibs_own_way_to_load_a_module_works_and_points_to_the_actor(trained):
    module = RLModule.from_checkpoint(f"{trained['context'][0]}/{MODULE}")
    assert isinstance(module, DTTorchRLModule)
    weights = load_policy(trained["context"][0]).network.state_dict()
    for name, weight in module.network.state_dict().items():
        assert torch.equal(weight, weights[name])
    with pytest.raises(
        ValueError, match=r"needs a window of the episode.*load_policy\(.*\)\.actor"
    ):
        module.forward_inference({"obs": torch.zeros(1, 4)})
    window = Contexts(1, module.network.config, *SPACES_OF_CARTPOLE)
    window.begin(0, np.zeros(4, np.float32), 20.0)
    batch = as_tensors(window.steps(np.arange(1)), torch.device("cpu")).columns()
    (action,) = module.forward_inference(batch)["actions"]
    assert action == load_policy(trained["context"][0]).actor(20.0).predict(np.zeros(4, np.float32))


def test_incomplete_and_damaged_checkpoints_are_refused(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is neither a checkpoint of a DT"):
        load_policy(tmp_path)
    for damage, message in (
        (lambda p: (p / MANIFEST).unlink(), "it has no rllib_dt_manifest.json"),
        (lambda p: (p / MANIFEST).write_text("{"), "rllib_dt_manifest.json is damaged"),
        (lambda p: (p / MODULE / "module_state.pkl").write_bytes(b"x"), "module_state.pkl"),
        (lambda p: (p / "class_and_ctor_args.pkl").unlink(), "class_and_ctor_args.pkl is missing"),
        (lambda p: change_manifest(p, version=9), "has version 9 .* upgrade rllib_dt"),
    ):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(trained["context"][0], tmp_path / "copy")
        damage(tmp_path / "copy")
        with pytest.raises(CheckpointError, match=message):
            load_policy(tmp_path / "copy")


def change_manifest(folder, **changes):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | changes))


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


def test_no_code_in_a_checkpoint_runs(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    module = tmp_path / "module"
    shutil.copytree(f"{trained['context'][0]}/{MODULE}", module)
    arguments = pickle.loads((module / "class_and_ctor_args.pkl").read_bytes())
    arguments["ctor_args_and_kwargs"][1]["more"] = Trap()
    (module / "class_and_ctor_args.pkl").write_bytes(pickle.dumps(arguments))
    assert load_policy(module).action_space == Discrete(2)  # what is not needed is not loaded
    arguments["ctor_args_and_kwargs"][1]["action_space"] = Trap()
    (module / "class_and_ctor_args.pkl").write_bytes(pickle.dumps(arguments))
    with pytest.raises(CheckpointError, match="spaces that are no gymnasium spaces"):
        load_policy(module)
    (module / "module_state.pkl").write_bytes(pickle.dumps({"network.x": Trap()}))
    shutil.copy(f"{trained['context'][0]}/{MODULE}/class_and_ctor_args.pkl", module)
    with pytest.raises(CheckpointError, match=r"the weights in .* do not fit its settings"):
        load_policy(module)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists()  # the trap works


def array_pickle(function, *arguments):
    class Made:
        def __reduce__(self):
            return function, arguments

    return Made()


def test_no_bytes_become_the_addresses_of_objects(trained, tmp_path):
    module = tmp_path / "module"
    shutil.copytree(f"{trained['context'][0]}/{MODULE}", module)
    arguments = pickle.loads((module / "class_and_ctor_args.pkl").read_bytes())
    hostile = [
        array_pickle(np.ndarray, (1,), "O", b"A" * 8),
        array_pickle(np.dtype, "O"),
        SetState(np.dtype("f8", False, True), (3, "<", None, None, None, -1, -1, 63)),
        SetState(np.dtype("f8", False, True), (3, "<", (np.dtype("O"), (1,)), None, None, 8, 8, 0)),
    ]
    for value in hostile:
        arguments["ctor_args_and_kwargs"][1]["observation_space"] = value
        (module / "class_and_ctor_args.pkl").write_bytes(pickle.dumps(arguments, protocol=4))
        with pytest.raises(CheckpointError):
            load_policy(module)


class SetState:
    """Pickles as an object that gets a state."""

    def __init__(self, built, state):
        self.built, self.state = built, state

    def __reduce__(self):
        return np.dtype, (self.built.str, False, True), self.state


def test_encoders_that_a_checkpoint_names_are_imported_only_if_they_are_allowed(cluster, tmp_path):
    from rllib_dt import DTConfig, write_episodes
    from tests.conftest import make_episodes
    from tests.recordings import ACTIONS, OBSERVATIONS

    write_episodes(make_episodes([5, 7]), tmp_path / "data", OBSERVATIONS, ACTIONS)
    name = "tests.test_load_policy.Own"
    model = DTModelConfig(**SMALL, encoders={"": name})
    config = DTConfig().offline_data(input_=str(tmp_path / "data")).rl_module(model_config=model)
    algo = config.build_algo()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    with pytest.raises(CheckpointError, match=r"has encoders of its own.*encoders=\['tests"):
        load_policy(path)
    assert load_policy(path, encoders=[name]).actor(1.0).predict(np.zeros(3)).shape == (2,)


class Own(torch.nn.Module):
    def __init__(self, space, width):
        super().__init__()
        self.layer = torch.nn.Linear(space.shape[0], width)

    def forward(self, values):
        return self.layer(values)


SLOW = pytest.mark.slow  # each takes a process that imports Ray


@pytest.mark.parametrize(
    "name",
    [
        "DTTorchRLModule",
        pytest.param("rollout.env_runner", marks=SLOW),
        pytest.param("reading.offline_data", marks=SLOW),
        pytest.param("DTTorchLearner", marks=SLOW),
        pytest.param("learning.learner", marks=SLOW),
        pytest.param("learning.rl_module", marks=SLOW),
        pytest.param("huggingface", marks=SLOW),
        pytest.param("examples", marks=SLOW),
        pytest.param("compat", marks=SLOW),
    ],
)
def test_any_part_may_be_imported_first(name):
    what = (
        f"import rllib_dt.{name}"
        if "." in name or name.islower()
        else (f"from rllib_dt import {name}")
    )
    out = run_script(
        f"""
        {what}
        import rllib_dt, ray.tune
        from ray.tune.registry import get_trainable_cls
        import importlib.util
        loader = importlib.util.find_spec("ray.tune").loader
        print(get_trainable_cls("DT") is rllib_dt.DT, loader.get_filename("ray.tune")[-11:])
        """
    )
    assert out.strip() == "True __init__.py"


# ---- actors


@pytest.mark.parametrize(
    ("space", "bad", "message"),
    [
        (
            Box(-1.0, 1.0, (3,)),
            [np.nan, 0, 0],
            "the observation of environment 0: it is not finite",
        ),
        (Box(-1.0, 1.0, (3,)), [1e39, 0, 0], "it is not finite in 32 bits"),
        (Box(0, 255, (8, 8, 3), np.uint8), np.full((8, 8, 3), 300.0), "values that are no uint8"),
        (Box(0, 255, (8, 8, 3), np.uint8), np.full((8, 8, 3), 0.9), "values that are no uint8"),
        (Discrete(4), 9, "lies outside"),
        (Discrete(4), 1.7, "values that are no int"),
        (
            Dict(a=Box(-1.0, 1.0, (2,))),
            {"a": [np.inf, 0.0]},
            "environment 0: leaf 'a': it",
        ),
    ],
)
def test_observations_that_would_be_read_as_others_are_refused(space, bad, message):
    actor = Actor(network(space, Box(-1.0, 1.0, (2,))), 1.0)
    with pytest.raises(ValueError, match=message):
        actor.predict(bad)


def test_a_refused_call_changes_nothing_and_results_are_the_callers():
    net = network(*SPACES["numbers"])
    seen = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    plain, careless = (Actor(net, 5.0, num_envs=2) for _ in range(2))
    for step in range(4):
        if step:
            with pytest.raises(ValueError, match="the reward of environment 1 is nan"):
                careless.predict(seen[step], [1.0, np.nan])
        action = careless.predict(seen[step], [1.0, 2.0])
        np.testing.assert_array_equal(action, plain.predict(seen[step], [[1.0], [2.0]]))
        action *= 0  # an environment that clips in place


def test_what_an_actor_cannot_do_is_refused():
    net = network(*SPACES["numbers"])
    for settings, message in (
        ({"num_envs": 0}, "num_envs=0 must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 must be"),
        ({"temperature": math.nan}, "temperature=nan must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Actor(net, 1.0, **settings)
    actor = Actor(net, 1.0, num_envs=2)
    for slots in ([-1], [2]):
        with pytest.raises(ValueError, match="are not the numbers of environments, 0 … 1"):
            actor.reset(slots)
    with pytest.raises(ValueError, match=r"rewards have the shape \(3,\), wanted one number or"):
        actor.predict(np.zeros((2, 3), np.float32), [1.0, 2.0, 3.0])


def network(observation_space, action_space, **model):
    torch.manual_seed(0)
    return DecisionTransformer(
        DTModelConfig(**SMALL, **model), observation_space, action_space
    ).eval()


SPACES = {
    "numbers": (Box(-1.0, 1.0, (3,)), Box(-2.0, 2.0, (2,))),
    "images": (Box(0, 255, (8, 8, 3), np.uint8), Discrete(5)),
    "composite": (
        Dict(far=Tuple([Box(-1.0, 1.0, (2, 2)), Discrete(3)]), mission=Text(9)),
        Tuple([MultiDiscrete([2, 3]), Dict(a=MultiBinary(4), b=Box(-1.0, 1.0, (1,)))]),
    ),
}


@pytest.mark.parametrize("attention", ["context", "window"])
@pytest.mark.parametrize("name", SPACES)
def test_one_observation_may_come_without_an_axis_for_the_environments(name, attention):
    observations, actions = SPACES[name]
    net = network(
        observations, actions, attention=attention,
        ignore=("mission",) if name == "composite" else (),
    )  # fmt: skip
    single, batched = Actor(net, 3.0), Actor(net, 3.0)
    observations.seed(0)
    for step in range(5):
        observation = observations.sample()
        action = single.predict(observation, 0.5 * step)
        assert actions.contains(as_sampled(actions, action))
        rows = gym.vector.utils.iterate  # the other form, an axis first
        batch = stacked(observation)
        (other,) = rows(
            gym.vector.utils.batch_space(actions, 1), batched.predict(batch, [0.5 * step])
        )
        assert same(action, other)


def stacked(value):
    if isinstance(value, dict):
        return {k: stacked(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(stacked, value))
    return np.asarray(value)[None]


def as_sampled(space, value):
    if isinstance(space, Dict):
        return {k: as_sampled(inner, value[k]) for k, inner in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(as_sampled(i, v) for i, v in zip(space.spaces, value, strict=True))
    return np.asarray(value).astype(space.dtype)[()] if not space.shape else value


def same(one, other):
    if isinstance(one, dict):
        return all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return all(map(same, one, other))
    return np.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("attention", ["context", "window"])
def test_a_generator_decides_what_is_drawn(attention):
    observations, actions = Box(-1.0, 1.0, (3,)), Tuple([Discrete(50), MultiBinary(20)])
    net = network(observations, actions, attention=attention)
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((20, 3)).astype(np.float32)

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        actor = Actor(net, 3.0, temperature=1.0, generator=generator)
        found = [actor.predict(observation) for observation in seen]
        return np.array([[one, *bits] for one, bits in found])

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = drawn(0)
    assert torch.equal(before, torch.get_rng_state())  # the global one is left alone
    np.testing.assert_array_equal(first, drawn(0))
    assert (first != drawn(1)).any()
    # the generator draws what torch's own distributions draw from the global one
    actor = Actor(net, 3.0, temperature=1.0)
    torch.manual_seed(0)
    found = [actor.predict(observation) for observation in seen]
    np.testing.assert_array_equal(first, np.array([[one, *bits] for one, bits in found]))


def test_each_environment_may_have_a_target_of_its_own():
    net = network(*SPACES["numbers"])
    seen = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    together = Actor(net, [1.0, 900.0], num_envs=2).predict(seen)
    alone = [Actor(net, target).predict(seen[i]) for i, target in enumerate((1.0, 900.0))]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    actor = Actor(net, 1.0, num_envs=2)
    actor.predict(seen)
    actor.reset([1], target_return=900.0)
    np.testing.assert_allclose(actor.predict(seen)[1], alone[1], atol=1e-6)
    for bad in ([1.0, 2.0, 3.0], np.nan, [[1.0], [2.0]]):
        with pytest.raises(ValueError, match="must be a finite number, or one for each"):
            Actor(net, bad, num_envs=2)
    with pytest.raises(ValueError, match="the reward of environment 1 is nan"):
        actor.predict(seen, [0.0, np.nan])
