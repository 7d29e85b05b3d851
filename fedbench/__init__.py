"""fedbench: train language models federatedly, score them, and say whether it worked."""

__version__ = "0.1.0"
