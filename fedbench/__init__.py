"""fedbench: train language models federatedly, score them, and say whether it worked.

The verbs of the command line are functions here: `train`, `score`, `merge`, `compare`, `check`.
They are imported when first used, so that ``import fedbench`` loads no torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# `peft` imports bitsandbytes wherever it is installed, and that tells at once of a package that
# some processors could use besides. This stands before every such import.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from fedbench.config import RunConfig as RunConfig
    from fedbench.config import load_config as load_config
    from fedbench.merging import merge as merge
    from fedbench.results.check import check as check
    from fedbench.results.comparison import compare as compare
    from fedbench.run import score_run as score_run
    from fedbench.run import train as train
    from fedbench.scoring import score as score

_WHERE = {
    "RunConfig": "fedbench.config",
    "check": "fedbench.results.check",
    "compare": "fedbench.results.comparison",
    "load_config": "fedbench.config",
    "merge": "fedbench.merging",
    "score": "fedbench.scoring",
    "score_run": "fedbench.run",
    "train": "fedbench.run",
}

__all__ = [
    "RunConfig",
    "__version__",
    "check",
    "compare",
    "load_config",
    "merge",
    "score",
    "score_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'fedbench' has no attribute {name!r}")
