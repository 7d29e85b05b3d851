"""What a server has, as checkpoints: nobody outside it sees the weights."""

from __future__ import annotations

import hashlib
import json

from fedbench.generation.backend import Checkpoint
from fedbench.generation.server.client import ServerClient
from fedbench.results.record import ModelId


def adapter_name(checkpoint: Checkpoint) -> str:
    """The name under which a server has exactly these weights."""
    return f"fedbench-{checkpoint.weights_hash}"


def server_hash(base_url: str, model: str) -> str:
    """Stands for the hash of weights that nobody outside the server can see."""
    return hashlib.sha256(json.dumps([base_url, model]).encode()).hexdigest()[:16]


def server_checkpoint(client: ServerClient) -> Checkpoint:
    """The model that a server has, where there is no checkpoint of it here."""
    digest = server_hash(client.base_url, client.model)
    return Checkpoint(
        model=ModelId(method=client.model, model_kind="base"),
        kind="base",
        directory=None,
        base=client.model,
        weights_hash=digest,
        base_hash=digest,
        selected_by="only",
    )
