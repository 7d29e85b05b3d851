"""FedAvg, clear and slow: what `fedbench.federated` computes, without a language model.

    python examples/fedavg_on_one_page.py

Two clients hold different halves of a line y = 2x + 1. Alone, each fits its half and misses the
other; averaging their weights after every round of local steps finds the line.
"""

from __future__ import annotations

import torch

ROUNDS, STEPS, RATE = 50, 5, 0.1


def make_client(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linspace(low, high, 20)
    noise = torch.sin(40 * x) / 4
    return x, 2 * x + 1 + noise


def train_locally(weights: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    weights = weights.clone().requires_grad_(True)
    for _ in range(STEPS):
        loss = ((weights[0] * x + weights[1] - y) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - RATE * gradient).detach().requires_grad_(True)
    return weights.detach()


def federated_average(clients: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    weights = torch.zeros(2)
    sizes = [len(x) for x, _ in clients]
    for _ in range(ROUNDS):
        updates = [train_locally(weights, x, y) for x, y in clients]
        shares = [size / sum(sizes) for size in sizes]
        weights = sum(share * update for share, update in zip(shares, updates, strict=True))
    return weights


def main() -> None:
    clients = [make_client(-1.0, 0.0), make_client(0.0, 1.0)]
    slope, intercept = federated_average(clients)
    print(f"federated: y = {slope:.2f} x + {intercept:.2f}   (the line is y = 2 x + 1)")


if __name__ == "__main__":
    main()
