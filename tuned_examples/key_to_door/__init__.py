"""Key-to-Door: remember in the last of three rooms what was done in the first."""
