"""The Decision Transformer's speed beside that of what a user would pick instead."""
