"""Helpers shared by the tests of training."""

import torch

NO_DROPOUT = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def learner_results(algo, times=1):
    for _ in range(times):
        result = algo.train()
    return result["learners"]["default_policy"]


def weights(algo):
    return {k: v.clone() for k, v in algo.get_module().network.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def mean_loss(network, out, data):
    """The action loss of a forward pass: the mean over valid steps, or 0 if there are none."""
    head, mask = network.action_head, data["mask"]
    return head.loss_sum(out.action_outputs, data["actions"], mask) / mask.sum().clamp(min=1)
