"""One script for each environment, following the conventions of RLlib's examples."""
