"""Acting without Ray: contexts of running episodes, and a network that acts on them."""
