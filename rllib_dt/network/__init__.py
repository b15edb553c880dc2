"""The Decision Transformer in torch, and what it is made of. No Ray in here."""
