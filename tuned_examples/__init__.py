"""One script for each environment, in the convention of RLlib's examples."""
