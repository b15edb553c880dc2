"""Acting without Ray: what is remembered of running episodes, and a network that acts on it."""
