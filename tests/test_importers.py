"""Checkpoints of the authors' code and of CORL, held to networks that are written here anew."""

import numpy as np
import pytest
import torch
from torch import nn

from rllib_dt import TrainedPolicy, import_checkpoint
from rllib_dt.huggingface import (
    DecisionTransformerConfig,
    DecisionTransformerModel,
    load_pretrained,
)
from rllib_dt.huggingface import save_pretrained as save
from rllib_dt.policy.weight_files import WeightsError

B, K, S, A, D = 3, 7, 11, 2, 24
MEAN, STD = torch.linspace(-1, 1, S), torch.linspace(0.5, 2, S)


def jolt(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def data(bound=1.0):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    return dict(
        observations=4 * draw(B, K, S) - 2,
        actions=(2 * draw(B, K, A) - 1) * bound,
        returns_to_go=3000 * draw(B, K, 1),
        timesteps=torch.tensor([[0], [5], [11]]) + torch.arange(K),
    )


class Corl(nn.Module):
    """CORL's network by torch's own encoder layers, which are the same function before norms."""

    def __init__(self, heads, bound, layers=2):
        super().__init__()
        self.heads, self.bound, self.layers = heads, bound, layers
        self.names = nn.ModuleDict(
            dict(timestep=nn.Embedding(50 + K, D), state=nn.Linear(S, D), action=nn.Linear(A, D),
                 returns=nn.Linear(1, D), first=nn.LayerNorm(D), last=nn.LayerNorm(D),
                 head=nn.Linear(D, A))
        )  # fmt: skip
        self.stack = nn.ModuleList(
            nn.TransformerEncoderLayer(
                D, heads, 4 * D, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )

    def forward(self, states, actions, returns, times):
        n = self.names
        time = n.timestep(times)
        parts = n.returns(returns) + time, n.state(states) + time, n.action(actions) + time
        x = n.first(torch.stack(parts, dim=2).reshape(B, 3 * K, D))
        mask = nn.Transformer.generate_square_subsequent_mask(3 * K)
        for layer in self.stack:
            x = layer(x, src_mask=mask)
        return torch.tanh(n.head(n.last(x)[:, 1::3])) * self.bound

    def as_saved(self):
        """The state dict under CORL's names."""
        ours = {"timestep": "timestep_emb", "state": "state_emb", "action": "action_emb",
                "returns": "return_emb", "first": "emb_norm", "last": "out_norm",
                "head": "action_head.0"}  # fmt: skip
        state = {
            f"{name}.{kind}": value
            for key, name in ours.items()
            for kind, value in self.names[key].state_dict().items()
        }
        blocks = {"self_attn": "attention", "linear1": "mlp.0", "linear2": "mlp.2"}
        for number, layer in enumerate(self.stack):
            for key, value in layer.state_dict().items():
                for theirs, name in blocks.items():
                    key = key.replace(theirs, name)
                state[f"blocks.{number}.{key}"] = value
            causal = ~torch.ones(3 * K, 3 * K).tril().bool()
            state[f"blocks.{number}.causal_mask"] = causal
        return state


@pytest.mark.parametrize(("heads", "bound"), [(1, 1.0), (4, 2.5)])
def test_corls_checkpoints_predict_what_its_code_predicts(tmp_path, heads, bound):
    theirs = jolt(Corl(heads, bound))
    saved = {"model_state": theirs.as_saved(), "state_mean": MEAN.numpy()[None],
             "state_std": STD.numpy()[None]}  # fmt: skip
    torch.save(saved, tmp_path / "dt_checkpoint.pt")
    lines = (f"num_heads: {heads}", "reward_scale: 0.001", f"max_action: {bound}", "group: DT",
             "checkpoints_path: null", "embedding_dropout: 0.2")  # fmt: skip
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    ours = import_checkpoint(tmp_path)
    assert (ours.config.n_head, ours.config.context_length) == (heads, K)
    assert (ours.return_scale, ours.config.embd_pdrop) == (1000, pytest.approx(0.2))
    window = data(bound)
    with torch.no_grad():
        got = ours(**window).action_preds
        want = theirs(
            (window["observations"] - MEAN) / STD,
            window["actions"],
            window["returns_to_go"] / 1000,
            window["timesteps"],
        )
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert ours.action_space.high[0] == np.float32(bound)
    # into a folder for RLlib, and an actor
    save(ours, tmp_path / "folder")
    again = load_pretrained(tmp_path / "folder")
    assert torch.equal(again(**window).action_preds, ours(**window).action_preds)
    action = TrainedPolicy(network=ours).actor(3000.0).predict(np.zeros(S, np.float32), 0.0)
    assert action.shape == (A,)


@pytest.mark.parametrize("embed_layer_norm", [True, False])
@pytest.mark.parametrize("form", ["bare", "wrapped", "data parallel"])
def test_the_authors_checkpoints_predict_what_their_code_predicts(tmp_path, form, embed_layer_norm):
    """Their network is Hugging Face's without position embedding, under other names."""
    config = DecisionTransformerConfig(
        state_dim=S, act_dim=A, hidden_size=D, n_head=3, n_layer=2, max_ep_len=40
    )
    config.embed_layer_norm = embed_layer_norm
    theirs = jolt(DecisionTransformerModel(config))
    with torch.no_grad():
        theirs.encoder.backbone.wpe.weight.zero_()
    theirs.save_pretrained(tmp_path / "folder")
    from safetensors.torch import load_file

    state = {
        name.replace("encoder.", "transformer."): value
        for name, value in load_file(tmp_path / "folder" / "model.safetensors").items()
        if "wpe" not in name
    }
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril().to(torch.uint8)
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    saved = {
        "bare": state,
        "wrapped": {"epoch": 3, "state_dict": state},
        "data parallel": {f"module.{name}": value for name, value in state.items()},
    }[form]
    torch.save(saved, tmp_path / "model.pt")
    ours = import_checkpoint(
        tmp_path / "model.pt", n_head=3, context_length=K, observation_mean=MEAN,
        observation_std=STD, return_scale=1000.0,
    )  # fmt: skip
    assert ours.config.n_positions is None
    assert ours.config.embed_layer_norm == embed_layer_norm
    window = data()
    with torch.no_grad():
        got = ours(**window)
        want = theirs(
            states=(window["observations"] - MEAN) / STD,
            actions=window["actions"],
            returns_to_go=window["returns_to_go"] / 1000,
            timesteps=window["timesteps"],
        )
    torch.testing.assert_close(got.action_preds, want.action_preds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.return_preds / 1000, want.return_preds, atol=1e-5, rtol=1e-5)


def test_what_lies_beside_the_weights_is_no_harm(tmp_path):
    corl = jolt(Corl(1, 1.0)).as_saved()
    statistics = {"state_mean": None, "state_std": torch.ones(S).bfloat16().requires_grad_()}
    torch.save(corl | {"epoch": 3} | statistics, tmp_path / "dt.pt")
    assert import_checkpoint(tmp_path / "dt.pt").observation_std.tolist() == [1.0] * S
    (tmp_path / "config.yaml").write_bytes(b"num_heads: \xff")
    with pytest.raises(WeightsError, match=r"config.yaml is damaged"):
        import_checkpoint(tmp_path / "dt.pt")


def test_missing_statistics_are_warned_of(tmp_path, caplog):
    torch.save(jolt(Corl(1, 1.0)).as_saved(), tmp_path / "dt.pt")
    assert import_checkpoint(tmp_path / "dt.pt", "corl").observation_std.tolist() == [1.0] * S
    assert "holds no statistics" in caplog.text


def test_what_is_no_such_checkpoint_is_refused(tmp_path):
    torch.save({"q.weight": torch.ones(2)}, tmp_path / "other.pt")
    corl = jolt(Corl(1, 1.0)).as_saved()
    torch.save(corl, tmp_path / "corl.pt")
    torch.save({n: v for n, v in corl.items() if "out_norm" not in n}, tmp_path / "part.pt")
    torch.save(Corl(1, 1.0), tmp_path / "model.pt")
    deep = {n.replace("blocks.0", "blocks.99999999"): v for n, v in corl.items()}
    torch.save(deep, tmp_path / "deep.pt")
    for name, settings, message in (
        ("other.pt", {}, "no Decision Transformer of kzl's gym code or of CORL; .*q.weight"),
        ("corl.pt", dict(kind="kzl"), "was written by corl's code, not by kzl's"),
        ("corl.pt", dict(n_head=5), "corl.pt.*n_head=5"),
        ("corl.pt", dict(observation_std=np.zeros(S)), "observation_std must be finite and pos"),
        ("corl.pt", dict(max_action=0), "max_action=0 must be"),
        ("deep.pt", {}, "the weights are of the blocks"),
        ("part.pt", {}, r"missing \['backbone.ln_f.bias'"),
        ("model.pt", {}, "holds objects of .*Corl.*save the model's state_dict"),
        ("none.pt", {}, "there is no file"),
        (".", {}, "holds 5 files of torch.save; give the path of one"),
        ("corl.pt", dict(kind="orl"), "kind='orl' is not one of"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            import_checkpoint(tmp_path / name, **settings)
    assert issubclass(WeightsError, ValueError)
