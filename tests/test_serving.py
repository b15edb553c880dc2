"""What a replica answers: windows, sessions, and every kind of wrong request; without Serve."""

import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Text, Tuple

from rllib_dt import DecisionTransformer, DTModelConfig, TrainedPolicy
from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.serve.replica import ServedPolicy
from rllib_dt.serve.requests import BadRequestError, LostSessionError, decoded, plain
from tests.scripts import run_script

K = 4
VECTOR = Box(-np.inf, np.inf, (3,)), Box(-0.5, 2.0, (2,))
NESTED = (
    Dict(
        eye=Box(0, 255, (5, 4, 1), np.uint8),
        rest=Tuple([Discrete(3), Box(-9, 9, ())]),
        action_mask=MultiBinary(4),
    ),
    Discrete(4),
)
ACTS = Box(-1, 1, (2,)), Dict(grip=Discrete(2), arm=Tuple([Box(-1, 1, (2,)), MultiBinary(3)]))


def trained(spaces=VECTOR, targets=(25.0,), **settings):
    torch.manual_seed(2)
    sizes = dict(hidden_size=16, n_layer=2, context_length=K, max_ep_len=40)
    network = DecisionTransformer(DTModelConfig(**(sizes | settings)), *spaces).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    rule = ReturnRule(clip_rewards=2.0)
    return TrainedPolicy(network=network, rule=rule, target_returns=targets)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def over_json(value):
    """What a value becomes on its way through HTTP."""
    return decoded(json.dumps(plain(value)).encode())


def window(served, **given):
    (action,) = served.act_on_windows([served.requests.window(over_json(given))])
    return action


def step(served, session, number, observation, **given):
    request = dict(session=session, step=number, observation=observation, **given)
    (answer,) = served.act_on_steps([served.requests.step(over_json(request))])
    if isinstance(answer, BadRequestError):
        raise answer
    return answer


def check_equal(got, want):
    got, want = plain(got), plain(want)
    if isinstance(want, dict | list):
        assert type(got) is type(want)
        assert len(got) == len(want)
        for key in want if isinstance(want, dict) else range(len(want)):
            check_equal(got[key], want[key])
    else:
        assert got == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("attention", ["context", "window"])
@pytest.mark.parametrize("spaces", [VECTOR, NESTED, ACTS], ids=["vector", "nested", "acts"])
def test_windows_and_sessions_act_as_an_actor_does(spaces, attention):
    policy = trained(spaces, attention=attention)
    served = ServedPolicy(policy, max_sessions=3)
    longest = served.requests.longest
    assert longest == (K if attention == "context" else 2 * K + 1)
    actor = policy.actor(25.0)
    spaces[0].seed(0)
    generator = np.random.default_rng(1)
    for _episode in range(2):
        actor.reset()
        observations, actions, returns, reward = [], [], [25.0], 0.0
        for t in range(13):
            observations.append(spaces[0].sample())
            want = actor.predict(observations[-1], reward)
            got = window(
                served,
                observations=observations[-longest:],
                actions=actions[-min(t, longest - 1) :] if t else [],
                returns_to_go=returns[-longest:],
                timestep=t,
            )
            check_equal(got, want)
            extra = dict(reward=reward) if t else {}
            check_equal(step(served, "one", t, observations[-1], **extra), want)
            actions.append(want)
            reward = float(generator.normal()) * 3
            returns.append(float(policy.rule.step(returns[-1], reward)))


def test_requests_in_one_batch_do_not_see_each_other():
    policy = trained()
    served = ServedPolicy(policy, max_sessions=9)
    generator = np.random.default_rng(0)
    given = [
        dict(
            observations=generator.normal(size=(n, 3)),
            actions=generator.uniform(0, 1, (n - 1, 2)),
            returns_to_go=generator.normal(size=n) * 9,
            timestep=n + 7,
        )
        for n in (1, 4, 2, 3)
    ]
    requests = [served.requests.window(over_json(each)) for each in given]
    together = served.act_on_windows(requests)
    for request, got in zip(requests, together, strict=True):
        check_equal(got, served.act_on_windows([request])[0])
    names = [f"s{i}" for i in range(4)]
    for t in range(3):
        steps = [
            served.requests.step(
                dict(session=name, step=t, observation=generator.normal(size=3), reward=1.0)
            )
            for name in names[: 4 - t]
        ]
        answers = served.act_on_steps([steps[0], *steps])  # the first comes twice
        check_equal(answers[0], answers[1])
        assert len(answers) == len(steps) + 1


def test_a_repeated_step_gets_the_same_answer_and_changes_nothing():
    policy = trained(attention="window")
    served, other = (ServedPolicy(policy, max_sessions=2) for _ in range(2))
    observed = np.random.default_rng(0).normal(size=(6, 3))
    for t, observation in enumerate(observed):
        extra = dict(reward=0.5) if t else dict(target_return=9.0)
        first = step(served, "a", t, observation, **extra)
        for _ in range(3):
            check_equal(step(served, "a", t, observation, **extra), first)
        check_equal(step(other, "a", t, observation, **extra), first)
    with pytest.raises(BadRequestError, match="is at step 5: send step 6, or step 5 again as it"):
        step(served, "a", 5, observed[0], reward=0.5)
    with pytest.raises(BadRequestError, match="is at step 5: send step 6"):
        step(served, "a", 7, observed[0], reward=0.5)
    # a new episode under the same name
    again = step(served, "a", 0, observed[0], target_return=9.0)
    check_equal(again, step(ServedPolicy(policy, max_sessions=1), "b", 0, observed[0],
                            target_return=9.0))  # fmt: skip


def test_the_least_recently_used_session_makes_room_and_idle_ones_go():
    clock = Clock()
    served = ServedPolicy(trained(), max_sessions=2, session_timeout_s=10.0, clock=clock)
    observation = [0.0, 1.0, 2.0]
    step(served, "a", 0, observation)
    step(served, "b", 0, observation)
    step(served, "a", 1, observation, reward=0.0)
    step(served, "c", 0, observation)  # "b" goes
    with pytest.raises(LostSessionError, match=r"'b' is not known: .*begin again at step 0"):
        step(served, "b", 1, observation, reward=0.0)
    step(served, "a", 2, observation, reward=0.0)
    clock.now = 10.5
    with pytest.raises(LostSessionError, match="'a' is not known"):
        step(served, "a", 3, observation, reward=0.0)
    assert not served.end("a")
    step(served, "a", 0, observation)
    assert served.end("a")
    # sessions of one batch wait for each other: each gets its answer, and two are remembered
    three = [
        served.requests.step(dict(session=name, step=0, observation=observation))
        for name in ("x", "y", "z")
    ]
    answers = served.act_on_steps(three)
    assert not any(isinstance(answer, BadRequestError) for answer in answers)
    step(served, "z", 1, observation, reward=0.0)
    with pytest.raises(LostSessionError):
        step(served, "x", 1, observation, reward=0.0)


def test_numbers_that_overflow_are_the_requests_fault_alone():
    served = ServedPolicy(trained(), max_sessions=4)
    for change in (
        dict(observations=[[3e38, 0, 0]]),
        dict(returns_to_go=[3e38]),
    ):
        given = dict(observations=[[1, 2, 3]], returns_to_go=[3]) | change
        requests = [served.requests.window(each) for each in (GOOD, given, GOOD)]
        first, bad, last = served.act_on_windows(requests)
        assert isinstance(bad, BadRequestError)
        check_equal(first, last)
    step(served, "good", 0, [1, 2, 3])
    with pytest.raises(BadRequestError, match="the action is not finite"):
        step(served, "bad", 0, [3e38, 0, 0])
    with pytest.raises(LostSessionError):
        step(served, "bad", 1, [1, 2, 3], reward=0.0)
    step(served, "good", 1, [1, 2, 3], reward=0.0)


def test_a_failure_of_the_network_loses_its_sessions_only(monkeypatch):
    served = ServedPolicy(trained(), max_sessions=3)
    observation = [0.0, 1.0, 2.0]
    step(served, "a", 0, observation)
    step(served, "b", 0, observation)
    act = served._policy.act
    monkeypatch.setattr(served._policy, "act", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(served, "a", 1, observation, reward=0.0)
    monkeypatch.setattr(served._policy, "act", act)
    with pytest.raises(LostSessionError):
        step(served, "a", 1, observation, reward=0.0)
    step(served, "b", 1, observation, reward=0.0)


GOOD = dict(observations=[[1, 2, 3], [4, 5, 6]], actions=[[0, 1]], returns_to_go=[3, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": None}, "observations is null, wanted an array"),
        ({"observations": []}, "observations holds 0 steps, wanted 1 to 4"),
        ({"observations": [[1, 2, 3]] * 5}, "observations holds 5 steps, wanted 1 to 4"),
        ({"observations": [[1, 2, 3], [4, 5]]}, r"observations\[1\]: .*\(2,\), wanted \(3,\)"),
        ({"observations": [[1, 2, 3], [4, [5], 6]]}, r"\[1\]: its arrays have different lengths"),
        ({"observations": [[1, 2, 3], ["a", 5, 6]]}, r"observations\[1\]: it holds something"),
        ({"observations": [[1, 2, 3], {"a": 5}]}, r"observations\[1\]: it holds something"),
        ({"observations": [[1, 2, 3], None]}, r"observations\[1\]: it holds something"),
        ({"observations": [[1, 2, 3], [1, 2, 10**400]]}, r"observations\[1\]: it holds something"),
        ({"observations": [[1, 2, 3], [1, 2, float("nan")]]}, r"\[1\]: it is not finite"),
        ({"observations": [[1, 2, 3], [1, 2, 1e300]]}, r"\[1\]: it is not finite"),
        ({"observations": "abc"}, "observations is a text"),
        ({"actions": [[0, 1], [0, 1], [0, 1]]}, "actions holds 3 actions, wanted 1"),
        ({"actions": []}, "actions holds 0 actions, wanted 1"),
        ({"actions": [[0]]}, r"actions\[0\]: it has the shape \(1,\), wanted \(2,\)"),
        ({"actions": [[0, float("inf")]]}, r"actions\[0\]: it is not finite"),
        ({"returns_to_go": [1]}, "returns_to_go holds 1 numbers, wanted 2"),
        ({"returns_to_go": [1, "2"]}, r"returns_to_go\[1\] is a text, wanted a finite number"),
        ({"returns_to_go": [1, float("nan")]}, r"returns_to_go\[1\] is nan"),
        ({"returns_to_go": [1, 10**400]}, r"returns_to_go\[1\] is a number of too many digits"),
        ({"timestep": 0}, "timestep is 0, wanted a whole number from 1 to"),
        ({"timestep": 2.5}, "timestep is 2.5, wanted a whole number"),
        ({"timestep": True}, "timestep is True, wanted a whole number"),
        ({"timestep": 2**31}, "timestep is 2147483648, wanted a whole number"),
        ({"rewards": [1]}, r"unknown fields \['rewards'\]; there are"),
    ],
)
def test_wrong_windows_are_refused_with_what_is_wrong(change, message):
    served = ServedPolicy(trained())
    assert len(plain(window(served, **GOOD))) == 2
    with pytest.raises(BadRequestError, match=message):
        served.requests.window(GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"session": ""}, "session must be a text of 1 to 200"),
        ({"session": 7}, "session must be a text"),
        ({"session": "a" * 201}, "session must be a text"),
        ({"session": "a/b"}, "without a slash"),
        ({"step": -1}, "step is -1, wanted a whole number from 0"),
        ({"step": "1"}, "step is a text, wanted a whole number"),
        ({"reward": None}, "reward is null, wanted a finite number"),
        ({"reward": float("-inf")}, "reward is -inf"),
        ({"target_return": 3.0}, "target_return is asked for at step 0 only"),
        ({"observation": [1, 2]}, r"observation: it has the shape \(2,\)"),
        ({"step": 0, "target_return": float("nan")}, "target_return is nan"),
    ],
)
def test_wrong_steps_are_refused_with_what_is_wrong(change, message):
    served = ServedPolicy(trained(), max_sessions=1)
    good = dict(session="a", step=1, observation=[1, 2, 3], reward=1.0)
    served.requests.step(good)
    with pytest.raises(BadRequestError, match=message):
        served.requests.step(good | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eye": [[[256]] * 4] * 5}, "leaf 'eye': it holds values that are no uint8"),
        ({"eye": [[[1.5]] * 4] * 5}, "leaf 'eye': it holds values that are no uint8"),
        ({"eye": [[[1]] * 4] * 4}, r"leaf 'eye' has the shape \(4, 4, 1\), wanted \(5, 4, 1\)"),
        ({"rest": [3, 1.0]}, "leaf 'rest/0': the observation 3 .*lies outside Discrete"),
        ({"rest": [1]}, "it has 1 parts, wanted 2"),
        ({"rest": 4}, "it is a number, wanted 2 parts"),
        ({"more": 1}, "does not have the leaves"),
    ],
)
def test_wrong_parts_of_nested_values_are_named(change, message):
    served = ServedPolicy(trained(NESTED))
    good = dict(eye=[[[1]] * 4] * 5, rest=[2, 1.0], action_mask=[1, 0, 1, 1])
    served.requests.window(dict(observations=[good], returns_to_go=[1]))
    for value in (good | change, [good | change], None):
        with pytest.raises(BadRequestError) as caught:
            served.requests.window(dict(observations=[value], returns_to_go=[1]))
        if isinstance(value, dict):
            caught.match(message)


def test_what_is_no_json_is_refused():
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"\x80\x04."):
        with pytest.raises(BadRequestError, match=r"no JSON|too deeply"):
            decoded(body)


def test_text_is_served(monkeypatch):
    spaces = Dict(say=Text(9, charset="abc "), joints=Box(-1, 1, (2,))), Box(-1, 1, (1,))
    from tests.test_own_encoders import Letters

    name = f"{Letters.__module__}.{Letters.__qualname__}"
    served = ServedPolicy(trained(spaces, encoders={"say": name}), max_sessions=1)
    observation = {"say": "abc a", "joints": [0.0, 0.5]}
    got = window(served, observations=[observation], returns_to_go=[25.0])
    check_equal(step(served, "a", 0, observation), got)
    # a text that is no text of the space fails alone, and advances nothing
    other = served.requests.step(dict(session="b", step=0, observation=observation))
    served.act_on_steps([other])
    for wrong in ("a" * 40, "\ud800"):
        with pytest.raises(BadRequestError, match="observation: "):
            served.requests.step(
                dict(session="c", step=0, observation=observation | {"say": wrong})
            )
    with pytest.raises(BadRequestError, match="it is a number, wanted a text"):
        window(served, observations=[{"say": 3, "joints": [0, 0]}], returns_to_go=[1])


@pytest.mark.parametrize("attention", ["context", "window"])
def test_a_session_may_ask_for_the_most(attention):
    policy = trained(attention=attention, estimates_return=True, targets=(float("inf"),))
    served = ServedPolicy(policy, max_sessions=2)
    assert served.describe()["target_returns"] == ["max"]
    actor = policy.actor("max")
    generator = np.random.default_rng(0)
    for t in range(9):
        observation = generator.normal(size=3)
        want = actor.predict(observation, 1.0)
        extra = dict(reward=1.0) if t else dict(target_return="max")
        check_equal(step(served, "a", t, observation, **extra), want)
        extra = dict(reward=1.0) if t else {}  # the checkpoint's own target
        check_equal(step(served, "b", t, observation, **extra), want)
    other = ServedPolicy(trained(), max_sessions=1)
    with pytest.raises(BadRequestError, match='cannot be asked for "max"'):
        step(other, "a", 0, [1, 2, 3], target_return="max")


def test_without_a_target_one_must_be_given():
    served = ServedPolicy(trained(targets=()), max_sessions=1)
    with pytest.raises(BadRequestError, match="target_return is missing"):
        step(served, "a", 0, [1, 2, 3])
    step(served, "a", 0, [1, 2, 3], target_return=4)


@pytest.mark.slow
def test_a_client_needs_neither_ray_nor_torch():
    out = run_script("""
        import sys
        from rllib_dt.serve import RemoteActor
        print([name for name in ("torch", "ray", "gymnasium.envs.mujoco") if name in sys.modules])
    """)
    assert out.strip() == "[]"
