"""Layer 2, pure torch: the Decision Transformer and what it needs; no Ray in here."""
