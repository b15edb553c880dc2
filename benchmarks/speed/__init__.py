"""Compares the Decision Transformer's speed with that of other implementations."""
