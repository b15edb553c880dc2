"""Checks connectors that see observations in evaluation: the data does not pass through them."""

import logging
from typing import TYPE_CHECKING

import ray
from ray.rllib.connectors.connector_v2 import ConnectorV2

from rllib_dt.compat import has_own_env_to_module

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

logger = logging.getLogger(__name__)

_OF_RLLIB = "ray.rllib."
_KNOWN_TO_CHANGE = ("FrameStacking", "MeanStdFilter", "PrevActionsPrevRewards")
"""RLlib's connectors that change observations, by the names of their classes."""

_REMEDY = (
    "transform observations in the environment (a gymnasium.ObservationWrapper) and in the "
    "recorded data alike (docs/extending.md)"
)


def check_connectors(config: "DTConfig", pipeline: ConnectorV2) -> None:
    """Refuses connectors that change observations, and warns of those that might.

    The network was trained on recorded observations, which no connector has seen. It normalises
    them itself, so no filter is needed.
    """
    if not has_own_env_to_module(config):
        return
    for piece in getattr(pipeline, "connectors", ()):
        classes = type(piece).__mro__
        of_rllib = [c.__name__ for c in classes if c.__module__.startswith(_OF_RLLIB)]
        if not set(_KNOWN_TO_CHANGE).isdisjoint(of_rllib):
            config.refuse(
                f"the connector {type(piece).__name__} changes what the network sees in "
                f"evaluation, but not the data that it is trained on; {_REMEDY}"
            )
        elif not classes[0].__module__.startswith(_OF_RLLIB) and _is_driver():
            logger.warning(
                "the connector %s acts in evaluation only: if it changes observations, the data "
                "must be changed alike; %s",
                type(piece).__name__,
                _REMEDY,
            )


def _is_driver() -> bool:
    """Whether this is not an evaluation runner's process, where it would be said again."""
    return not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None
