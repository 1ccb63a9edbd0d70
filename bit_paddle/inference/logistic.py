"""Logistic regression of several classes with an L2 penalty, by Newton's method in float64.

A Newton step solves its linear equations by conjugate gradients (as scikit-learn's ``newton-cg``),
so the matrix of second derivatives, [C K, C K], is never made. It is multiplied in float32, which
is twice as fast: the steps are a little worse then, but not the solution, because the gradient that
ends them is in float64. The loss is strictly convex: there is one solution, and the penalty bounds
the distance to it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_STEPS, _SMALLEST_STEP = 100, 1e-6

_PRODUCTS = 1000  # of the matrix in one step

_ROUNDING = 1e-12  # of the loss, relative: a smaller increase is none


def fit(
    inputs: np.ndarray,
    labels: np.ndarray,
    classes: int,
    strength: float = 1.0,
    tolerance: float = 1e-2,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classifier with the least sum of cross-entropies + ``strength`` * |weights|² / 2.

    ``inputs`` are float64 [N, C] with ``labels`` int64 [N]; the result is (weights [C, K],
    bias [K]). The bias has no penalty and the mean 0. The norm of the gradient is at most
    ``tolerance`` at the end, so that no weight is further than about ``tolerance`` / ``strength``
    from the solution. Columns of ``inputs`` that are orthogonal to each other make it quick.

    scikit-learn's ``LogisticRegression(C=1 / strength)`` has the same solution. With two classes it
    is that of ``C=2 / strength``, because scikit-learn then has one vector of weights, not two.
    """
    images = np.hstack([inputs, np.ones((len(inputs), 1))])  # the last column is for the bias
    rounded = images.astype(np.float32)
    onehot = np.eye(classes)[labels]
    penalty = np.full((images.shape[1], 1), strength)
    penalty[-1] = 0
    squares = (images**2).sum(axis=0)[:, None]

    def evaluate(weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and the probabilities [N, K]."""
        scores = images @ weights
        scores -= scores.max(axis=1, keepdims=True)
        raised = np.exp(scores)
        sums = raised.sum(axis=1, keepdims=True)
        losses = np.log(sums[:, 0]) - scores[np.arange(len(labels)), labels]
        return float(losses.sum() + (penalty * weights**2).sum() / 2), raised / sums

    weights = np.zeros((images.shape[1], classes))
    loss, probabilities = evaluate(weights)
    for _ in range(_STEPS):
        gradient = images.T @ (probabilities - onehot) + penalty * weights
        size = float(np.linalg.norm(gradient))
        if size <= tolerance:
            break

        def product(change: np.ndarray, known: np.ndarray = probabilities) -> np.ndarray:
            """Return the second derivatives times ``change``."""
            moved = known * (rounded @ change.astype(np.float32))
            moved -= known * moved.sum(axis=1, keepdims=True)
            return rounded.T @ moved.astype(np.float32) + penalty * change

        # the diagonal of the second derivatives, if all images had the mean of p (1 - p)
        spread = (probabilities * (1 - probabilities)).mean(axis=0)
        diagonal = squares * spread + penalty + 1e-12
        enough = max(min(0.1, size**0.5) * size, tolerance / 2)
        change = _conjugate_gradients(product, -gradient, diagonal, enough)
        slope, step = float((gradient * change).sum()), 1.0
        while step > _SMALLEST_STEP:
            loss_there, probabilities = evaluate(weights + step * change)
            if loss_there <= loss + 1e-4 * step * slope + _ROUNDING * abs(loss):
                break
            step /= 2
        weights, loss = weights + step * change, loss_there
    return weights[:-1], weights[-1] - weights[-1].mean()


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray],
    target: np.ndarray,
    diagonal: np.ndarray,
    enough: float,
) -> np.ndarray:
    """Return x with |product(x) - target| <= ``enough``; ``diagonal`` resembles the matrix's."""
    result, rest = np.zeros_like(target), target.copy()
    scaled = rest / diagonal
    direction, energy = scaled, float((rest * scaled).sum())
    for _ in range(_PRODUCTS):
        image = product(direction)
        step = energy / float((direction * image).sum())
        result += step * direction
        rest -= step * image
        if np.linalg.norm(rest) <= enough:
            break
        scaled = rest / diagonal
        energy, before = float((rest * scaled).sum()), energy
        direction = scaled + energy / before * direction
    return result
