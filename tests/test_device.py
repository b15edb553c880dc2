"""GPU behaviour, tested without a GPU: compiled graphs, and reads that wait for the device."""

import contextlib
import importlib
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from rllib_dt.algorithm.resources import NotEnoughResourcesError
from rllib_dt.learning import precision
from tests.conftest import tiny_config
from tests.training import NO_DROPOUT, learner_results

ATTENTIONS = ["context", "window"]


def losses(config, backend=None):
    if backend is not None:
        config.framework(torch_compile_learner=True, torch_compile_learner_dynamo_backend=backend)
    algo = config.build_algo()
    found = [float(learner_results(algo)["action_loss"]) for _ in range(2)]
    algo.stop()
    return found


# torch 2.13 (2026-11): its own compiler uses the deprecated `torch.jit.script_method`
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.trap(15)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_a_compiled_step_is_one_graph_and_yields_the_same_losses(
    cluster, tiny_data, attention, backend
):
    data, _ = tiny_data
    want = losses(tiny_config(data, attention=attention, **NO_DROPOUT))
    torch._dynamo.reset()
    counters.clear()
    got = losses(tiny_config(data, attention=attention, **NO_DROPOUT), backend)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
@pytest.mark.trap(15)
def test_the_seed_determines_compiled_dropout(cluster, tiny_data):
    torch._dynamo.reset()
    first = losses(tiny_config(tiny_data[0]), "aot_eager")
    assert losses(tiny_config(tiny_data[0]), "aot_eager") == first
    assert losses(tiny_config(tiny_data[0]).debugging(seed=1), "aot_eager") != first


@pytest.mark.slow
@pytest.mark.trap(15)
def test_two_compiled_learners_yield_the_same_losses(cluster, tiny_data):
    torch._dynamo.reset()
    want = losses(tiny_config(tiny_data[0], **NO_DROPOUT).learners(num_learners=2))
    config = tiny_config(tiny_data[0], **NO_DROPOUT).learners(num_learners=2)
    assert losses(config, "aot_eager") == pytest.approx(want, rel=1e-5)


def test_compiling_rllibs_complete_update_is_refused():
    config = tiny_config("nowhere").framework(
        torch_compile_learner=True, torch_compile_learner_what_to_compile="complete_update"
    )
    with pytest.raises(ValueError, match="leave it at 'forward_train'"):
        config.validate()


class CountSynchronisations(TorchDispatchMode):
    """Counts reads of a tensor's value, which wait for a GPU, and returns a placeholder."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten.nonzero.default, "waits for the device"
        read = func is torch.ops.aten._local_scalar_dense.default
        if read and args[0].device.type != "cpu":  # batches are drawn on the host
            self.count += 1
            return {torch.bool: False, torch.int64: 1}.get(args[0].dtype, 1.0)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def learner_on_meta_device(cluster, tiny_data, monkeypatch):
    """A learner on torch's "meta" device in place of a GPU; its tensors hold no values."""
    algo = tiny_config(tiny_data[0]).build_algo()
    algo.train()
    learner = algo.learner_group._learner
    learner.module["default_policy"].to("meta")
    learner._device = torch.device("meta")
    for kept in ("_named_optimizers", "_optimizer_parameters", "_params", "_module_optimizers"):
        getattr(learner, kept).clear()
    learner.configure_optimizers_for_module("default_policy", learner.config)
    # fused AdamW rejects the meta device; nothing is computed here, so the check can go
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda p: None)

    yield learner
    algo.stop()


@pytest.mark.trap(13)
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_updates_wait_for_the_device_only_to_read_their_metrics(
    learner_on_meta_device, micro_batch_size
):
    learner = learner_on_meta_device
    object.__setattr__(learner.config, "micro_batch_size", micro_batch_size)  # it is frozen
    learner.before_gradient_based_update(timesteps={})
    with CountSynchronisations() as synchronisations:
        for batch in learner._next_batches(5):
            learner._update(batch.policy_batches)
        assert synchronisations.count == 0
        learner.after_gradient_based_update(timesteps={})
    # one read each for all five updates: bad loss, bad weights, steps, loss, gradient norm
    assert synchronisations.count == 5
    assert learner.progress.updates == 3 + 5


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bf16_without_instructions_for_it_is_warned_of(
    cluster, tiny_data, monkeypatch, caplog, has_instructions
):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: has_instructions)
    with caplog.at_level("WARNING", "rllib_dt"):
        tiny_config(tiny_data[0]).training(precision="bf16").build_algo().stop()
    warned = 'precision="bf16" on a CPU without bf16 instructions' in caplog.text
    assert warned is not has_instructions


def test_instructions_are_found_by_the_names_of_the_processors_flags(monkeypatch, tmp_path):
    for flags, found in (
        ("avx2 avx512_bf16", ["avx512_bf16"]),
        ("avx512f avx512_bf16 amx_bf16", ["amx_bf16", "avx512_bf16"]),
        ("avx2", []),
    ):
        monkeypatch.setattr(Path, "read_text", lambda self, flags=flags: f"flags : {flags}\n")
        assert precision.bf16_instructions() == found


@pytest.mark.parametrize(("multiplies", "same_as"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_device_multiplies_it_itself(
    cluster, tiny_data, monkeypatch, multiplies, same_as
):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: multiplies)
    losses = {}
    for chosen in ("auto", "bf16", "fp32"):
        algo = tiny_config(tiny_data[0]).training(precision=chosen).build_algo()
        losses[chosen] = learner_results(algo, 2)["action_loss"]
        algo.stop()
    assert losses["auto"] == losses[same_as]
    assert losses["bf16"] != losses["fp32"]


def test_auto_is_fp32_on_devices_that_emulate_bf16(monkeypatch):
    def supports(including_emulation=True):
        return including_emulation  # as torch answers for cards before Ampere

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supports)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    assert precision.autocast_dtype("auto", torch.device("cuda")) is None
    assert precision.autocast_dtype("bf16", torch.device("cuda")) is torch.bfloat16
    assert precision.autocast_dtype("auto", torch.device("meta")) is None


def test_a_missing_gpu_is_named(cluster, tiny_data):
    for learners, message in (
        (0, r"num_gpus_per_learner=1, but this process finds no GPU .*num_gpus_per_learner=0"),
        (1, r"the learners and evaluation runners need 1 GPU, but the cluster has 0 GPU"),
    ):
        config = tiny_config(tiny_data[0])
        config.learners(num_learners=learners, num_gpus_per_learner=1)
        with pytest.raises(NotEnoughResourcesError, match=message):
            config.build_algo()
