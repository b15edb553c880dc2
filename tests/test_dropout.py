"""Dropout with 16-bit random numbers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rllib_dt.network.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.003])
def test_the_share_of_dropped_elements_is_p_and_the_rest_is_scaled(p):
    torch.manual_seed(0)
    n = 2_000_000
    out = dropout(torch.ones(n), p, True)
    dropped = round(p * 2**16) / 2**16
    kept = out[out != 0]
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - dropped), rel=1e-6)
    # within 5 standard deviations: one false alarm in 1.7 million runs, and the seed is fixed
    deviation = np.sqrt(n * dropped * (1 - dropped))
    assert abs((out == 0).sum().item() - n * dropped) < 5 * deviation
    assert abs(dropped - p) <= 2**-17


def test_the_lanes_of_a_word_are_dropped_independently_with_equal_probability():
    torch.manual_seed(1)
    zero = (dropout(torch.ones(1_000_000), 0.25, True) == 0).view(-1, 4).numpy()
    n = len(zero)
    for lane in range(4):  # 5 standard deviations each, as above
        assert abs(zero[:, lane].sum() - n / 4) < 5 * np.sqrt(n * 3 / 16)
        for other in range(lane):
            both = (zero[:, lane] & zero[:, other]).sum()
            assert abs(both - n / 16) < 5 * np.sqrt(n * 15 / 256)


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7, 1), (2, 0, 3)])
def test_the_output_has_the_shape_of_the_input(shape):
    assert dropout(torch.ones(shape), 0.5, True).shape == shape


def test_dropout_is_off_at_p_zero_and_in_evaluation_and_repeats_with_the_seed():
    x = torch.randn(50)
    assert dropout(x, 0.0, True) is x
    assert dropout(x, 0.5, False) is x
    module = Dropout(0.5)
    draws = []
    for _ in range(2):
        torch.manual_seed(4)
        draws.append((module(x), module(x)))
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(*draws[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_flow_through_kept_elements_only(dtype):
    torch.manual_seed(2)
    x = torch.randn(200, dtype=dtype, requires_grad=True)
    out = dropout(x, 0.3, True)
    assert out.dtype == dtype
    out.sum().backward()
    torch.testing.assert_close(out.detach(), x.detach() * x.grad)
    assert set((x.grad != 0).tolist()) == {True, False}


def test_other_devices_use_torchs_own_dropout(monkeypatch):
    called = []
    monkeypatch.setattr(F, "dropout", lambda x, p: called.append((x.device.type, p)) or x)
    dropout(torch.ones(3, device="meta"), 0.2, True)
    assert called == [("meta", 0.2)]
