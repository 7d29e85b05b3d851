"""Tasks, how answers are read, and the scoring of many checkpoints together."""
