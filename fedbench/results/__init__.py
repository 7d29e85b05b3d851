"""Records of what was scored, the statistics on them, and the tables and verdicts made of them."""
