"""What tests of training share."""

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
