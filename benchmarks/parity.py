"""How close the network's predictions are to those of transformers, at random configurations.

    python -m benchmarks.parity [COUNT]

Each configuration gets random weights, which `transformers` writes and `load_pretrained` reads.
Both networks predict from the same float32 batch, and are compared with each other and with
transformers' own network in float64. Needs the extra `huggingface`.
"""

import random
import sys
import tempfile

import torch
import transformers

from rllib_dt.huggingface import load_pretrained

B, K = 4, 8
PREDICTIONS = ("action_preds", "state_preds", "return_preds")


def random_settings(rng: random.Random) -> dict[str, object]:
    """Returns the arguments of a `DecisionTransformerConfig`, without dropout."""
    heads = rng.choice([1, 2, 4, 8])
    return dict(
        state_dim=rng.randint(1, 40),
        act_dim=rng.randint(1, 12),
        hidden_size=heads * rng.randint(2, 32),
        n_head=heads,
        n_layer=rng.randint(1, 6),
        n_inner=rng.choice([None, rng.randint(4, 256)]),
        activation_function=rng.choice(["relu", "gelu", "gelu_new", "silu", "tanh"]),
        action_tanh=rng.random() < 0.5,
        scale_attn_weights=rng.random() < 0.5,
        scale_attn_by_inverse_layer_idx=rng.random() < 0.5,
        max_ep_len=K,
        n_positions=3 * K,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )


@torch.no_grad()
def errors(seed: int) -> tuple[float, float, float]:
    """Returns the largest differences: ours to theirs, ours to float64, theirs to float64."""
    settings = random_settings(random.Random(seed))
    torch.manual_seed(seed)
    theirs = transformers.DecisionTransformerModel(
        transformers.DecisionTransformerConfig(**settings)
    ).eval()
    for parameter in theirs.parameters():  # away from neutral biases and norms
        parameter.add_(0.2 * torch.randn_like(parameter))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_pretrained(folder).eval()
    mask = torch.arange(K) >= torch.tensor([[0], [2], [5], [7]])
    states = torch.randn(B, K, settings["state_dim"])
    actions = torch.rand(B, K, settings["act_dim"]) * 2 - 1
    returns_to_go = torch.randn(B, K, 1)
    timesteps = torch.arange(K).expand(B, K) * mask

    def predictions(out: object) -> torch.Tensor:
        return torch.cat([getattr(out, name)[mask] for name in PREDICTIONS], -1).double()

    def of_theirs() -> torch.Tensor:
        dtype = theirs.dtype
        out = theirs(
            states=states.to(dtype),
            actions=actions.to(dtype),
            rewards=torch.zeros(B, K, 1, dtype=dtype),
            returns_to_go=returns_to_go.to(dtype),
            timesteps=timesteps,
            attention_mask=mask.to(dtype),
        )
        return predictions(out)

    got, want = predictions(ours(states, actions, returns_to_go, timesteps, mask)), of_theirs()
    theirs.double()
    exact = of_theirs()
    pairs = ((got, want), (got, exact), (want, exact))
    return tuple(float((one - other).abs().max()) for one, other in pairs)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    torch.set_num_threads(1)
    found = torch.tensor([errors(seed) for seed in range(count)], dtype=torch.float64)
    for name, column in zip(
        ("ours to theirs", "ours to float64", "theirs to float64"), found.T, strict=True
    ):
        print(f"{name:18} median {column.median():.1e}  worst {column.max():.1e}")


if __name__ == "__main__":
    main()
