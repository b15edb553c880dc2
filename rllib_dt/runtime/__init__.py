"""Layer 3: reading, learning and evaluating in Ray."""
