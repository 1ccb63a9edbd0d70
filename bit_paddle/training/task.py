"""A task: what a run learns. It has the batches, the loss and the measurements.

The loop (`run`, `step`, `start`, `memory`, `testing`) works for every task: it knows nothing of
labels, losses and metrics. `classification` is a task. This module does not load Paddle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from paddle import Tensor

    from bit_paddle.models.resnetv2 import ResNetV2

# The loss of a micro-batch, with gradients. The losses of all micro-batches of a step, in all
# processes, add up to the loss of the step. The second argument is an item of `micro_batches`.
MicroBatchLoss = Callable[["ResNetV2", Any], "Tensor"]


class Batch(Protocol):
    """One process's share of the batch of a step."""

    @property
    def indices(self) -> np.ndarray:
        """The images of the whole batch, of all processes."""

    def micro_batches(self, split: int) -> Iterator[Any]:
        """Yield the share in ``split`` parts at most, the same ones in every call."""


class Measurement(Protocol):
    """The metrics of a model on a part of the data; ``str`` of it is a line for the log."""

    @property
    def score(self) -> float:
        """The metric that chooses the best model, from 0 to 1; larger is better."""

    def summary(self) -> dict[str, float]:
        """Return the metrics by name, for ``metrics.jsonl`` and ``result.json``."""


class Task(ABC):
    """What a run learns. All ranks call the same methods in the same order, except `trial_loss`.

    So a method may use collectives, and must return the same measurement in all ranks. It raises
    `Interrupted` in all ranks or in none.
    """

    @abstractmethod
    def new_network(self) -> ResNetV2:
        """Return a network of the right shape, whose weights will be replaced."""

    @abstractmethod
    def initial_network(self) -> ResNetV2:
        """Return the network that a new run starts with: pre-trained, or random by the seed."""

    @abstractmethod
    def batches(self, start: int) -> Generator[Batch, None, None]:
        """Yield this rank's share of the batch of each step from step ``start`` on, without end."""

    @abstractmethod
    def prepare(self, model: ResNetV2, batch_split: int) -> None:
        """Do what is needed once, before the first step that this process makes."""

    @abstractmethod
    def loss_of(self, batch: Batch) -> MicroBatchLoss:
        """Return the loss of the micro-batches of ``batch``.

        It is called once per step, so it may sum a normalizer over all ranks.
        """

    @abstractmethod
    def trial_loss(self, model: ResNetV2, images: int) -> Tensor:
        """Return the loss of a micro-batch of so many made-up images, as large as any in memory."""

    @abstractmethod
    def names(self, batch: Batch) -> list[str]:
        """Return the names of the images of the whole batch."""

    @abstractmethod
    def validate(self, model: ResNetV2, batch_split: int, last: bool) -> Measurement:
        """Measure ``model`` on the validation images; ``last``: after the last step."""

    @abstractmethod
    def test(self, model: ResNetV2, batch_split: int) -> Measurement:
        """Measure ``model`` on the test images; called only if the plan has some."""
