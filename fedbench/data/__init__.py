"""Data: where rows come from, how they become turns, and how they are split over clients."""
