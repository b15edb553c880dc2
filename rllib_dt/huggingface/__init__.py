"""Hugging Face's Decision Transformer: its classes over our network, and its folders.

`DecisionTransformerConfig`, `DecisionTransformerModel` and `DecisionTransformerGPT2Model` have the
signatures of `transformers`, so that its example runs with another import line, without
`transformers`. They hold one `rllib_dt.DecisionTransformer`, and add nothing to it. For training
and acting in RLlib, `load_pretrained` returns the network itself.
"""

from rllib_dt.huggingface.backbone import DecisionTransformerGPT2Model
from rllib_dt.huggingface.configuration import DecisionTransformerConfig
from rllib_dt.huggingface.model import DecisionTransformerModel
from rllib_dt.huggingface.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    DecisionTransformerOutput,
    PastKeyValues,
)
from rllib_dt.policy.folders import load_pretrained, pretrained_settings, save_pretrained
from rllib_dt.policy.importers import import_checkpoint

__all__ = [
    "BaseModelOutputWithPastAndCrossAttentions",
    "DecisionTransformerConfig",
    "DecisionTransformerGPT2Model",
    "DecisionTransformerModel",
    "DecisionTransformerOutput",
    "PastKeyValues",
    "import_checkpoint",
    "load_pretrained",
    "pretrained_settings",
    "save_pretrained",
]
