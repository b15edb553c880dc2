"""Imports and exports Hugging Face folders: the public names of `rllib_dt.policy.folders`."""

from rllib_dt.policy.folders import load_pretrained, pretrained_settings, save_pretrained

__all__ = ["load_pretrained", "pretrained_settings", "save_pretrained"]
