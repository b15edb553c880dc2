"""What the models under Hugging Face's names share: folders, dtype, defaults of their calls."""

import copy
import logging
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from rllib_dt.huggingface.configuration import DecisionTransformerConfig, config_file
from rllib_dt.policy.folders import SYNONYMS
from rllib_dt.policy.weight_files import (
    SAFETENSORS,
    TORCH,
    Weights,
    WeightsError,
    clear_weights,
    read_weights,
)
from rllib_dt.policy.weight_names import sizes_in, with_their_names
from rllib_dt.policy.weight_values import fill

logger = logging.getLogger(__name__)

Facade = TypeVar("Facade", bound="PretrainedFacade")
_IGNORED = ("local_files_only", "low_cpu_mem_usage", "device_map", "use_safetensors", "revision")


class PretrainedFacade(nn.Module, ABC):
    """Base of the models under Hugging Face's names.

    Their weights have our names and layouts (`Linear`, not `Conv1D`); folders have theirs.

    Attributes:
        config: the settings.
    """

    def __init__(self, config: DecisionTransformerConfig):
        super().__init__()
        if not isinstance(config, DecisionTransformerConfig):
            raise TypeError(f"config is a {type(config).__name__}, no DecisionTransformerConfig")
        self.config = config

    @abstractmethod
    def _own_state(self, weights: Weights) -> tuple[nn.Module, Weights]:
        """Returns the module to fill, and Hugging Face's weights under its names."""

    @abstractmethod
    def _their_state(self) -> Weights:
        """Returns the weights under Hugging Face's names."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Returns the number of weights."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    @classmethod
    def from_pretrained(
        cls: type[Facade],
        folder: str | os.PathLike[str],
        *,
        config: DecisionTransformerConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        subfolder: str = "",
        **settings: Any,
    ) -> Facade:
        """Loads a model from a local folder, in eval mode. Nothing is downloaded.

        The folder's normalisation, if it has one, is not applied, just as by `transformers`: states
        and returns are given in the network's units. `load_pretrained` applies it.

        Args:
            folder: see `rllib_dt.huggingface.load_pretrained`.
            config: replaces the folder's.
            dtype, torch_dtype: of the weights; float32 by default, "auto" for that of the files.
            subfolder: of the folder, where the model is.
            settings: settings of the config that take precedence over the folder's.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the files are damaged or of another model, or do not fit the settings.
            TypeError: a keyword is no setting, or settings are given beside a config.
        """
        settings = {name: value for name, value in settings.items() if name not in _IGNORED}
        unknown = sorted(set(settings) - set(DecisionTransformerConfig().to_dict()) - set(SYNONYMS))
        if unknown or (settings and config is not None):
            raise TypeError(
                f"from_pretrained has no keywords {unknown}"
                if unknown
                else f"{sorted(settings)} are given beside a config; set them there"
            )
        path = config_file(Path(folder) / subfolder).parent
        if config is None:
            config = DecisionTransformerConfig.from_pretrained(path, **settings)
        config = copy.deepcopy(config)
        weights = with_their_names(read_weights(path))
        if any(name.startswith("embed_timestep") for name in weights):
            config.embed_layer_norm = "embed_ln.weight" in weights
            sizes = sizes_in(weights, str(path))
            wrong = [
                f"{name} is {getattr(config, name)!r}, and the weights have {size}"
                for name, size in sizes.items()
                if getattr(config, name) != size and name != "n_inner"
            ]
            if wrong:
                raise WeightsError(f"{path}: the weights do not fit the settings: {wrong}")
        try:
            model = cls(config)
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{path}: {error}") from error
        if not any(name.endswith("wpe.weight") for name in weights):
            logger.warning("%s: there is no position embedding, so that it is zero", path)
            shape = (config.n_positions, config.hidden_size)
            weights["encoder.wpe.weight"] = torch.zeros(shape)
        fill(*model._own_state(weights), str(path), torch_dtype if dtype is None else dtype)
        return model.eval()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, safe_serialization: bool = True
    ) -> None:
        """Writes a folder that `transformers` and `from_pretrained` can read.

        Args:
            folder: where to; created if it is missing.
            safe_serialization: as safetensors; otherwise as torch's own file.
        """
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        clear_weights(path)
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(path)
        state = {
            name: value.detach().cpu().contiguous() for name, value in self._their_state().items()
        }
        if safe_serialization:
            save_file(state, path / SAFETENSORS, metadata={"format": "pt"})
        else:
            torch.save(state, path / TORCH)

    def wants(self, name: str, given: bool | None) -> bool:
        """Returns an option of a call: what is given, or else the config's default."""
        return bool(getattr(self.config, name) if given is None else given)
