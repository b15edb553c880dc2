"""Layer 1, pure numpy: what an episode is, its returns-to-go, and windows of it."""
