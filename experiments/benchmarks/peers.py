"""Runs by PyTorch and scikit-learn, in a file that imports neither JAX nor this library, to compare memory."""

import itertools
import warnings
from typing import Any

import numpy as np

from experiments.benchmarks.problems import RATE, Problem


def with_torch(problem: Problem, fused: bool = False, compiled: bool = False) -> Any:
    """Fit with PyTorch, indexing tensors with a permutation (a DataLoader is slower)."""
    import torch

    def eager_loss(inputs: Any, labels: Any) -> Any:
        logits = model(inputs)
        return criterion(logits[:, 0] if binary else logits, labels)

    mean_loss: Any = torch.compile(eager_loss) if compiled else eager_loss

    x, y = torch.tensor(problem.inputs), torch.tensor(problem.labels.astype(np.int64))
    widths = (x.shape[1], *problem.hidden, problem.outputs)
    binary = problem.outputs == 1
    targets = y.float() if binary else y
    criterion = torch.nn.BCEWithLogitsLoss() if binary else torch.nn.CrossEntropyLoss()

    layers = [torch.nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    activation = torch.nn.Tanh() if problem.activation == "tanh" else torch.nn.ReLU()
    model = torch.nn.Sequential(*[module for layer in layers for module in (layer, activation)][:-1])

    def run(seed: int) -> float:
        torch.manual_seed(seed)
        for layer in layers:
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=fused)
        for _ in range(problem.epochs):
            total = torch.zeros(())
            for rows in torch.randperm(len(x)).split(problem.batch_size):
                optimizer.zero_grad(set_to_none=True)
                value = mean_loss(x[rows], targets[rows])
                value.backward()
                optimizer.step()
                total += value.detach() * len(rows)
        return float(total) / len(x)

    return run


def with_scikit_learn(problem: Problem) -> Any:
    """Fit with scikit-learn's MLPClassifier, without its penalty and early stopping."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    def run(seed: int) -> float:
        model = MLPClassifier(
            problem.hidden,
            activation=problem.activation,
            batch_size=problem.batch_size,
            max_iter=problem.epochs,
            n_iter_no_change=problem.epochs + 1,
            tol=0.0,
            alpha=0.0,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(problem.inputs, problem.labels)
        return float(model.loss_)

    return run
