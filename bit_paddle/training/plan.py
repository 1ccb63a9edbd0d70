"""The plan of a run: all decisions before it starts, made without loading Paddle.

`Plan` has the decisions that every task needs; each task adds its own (`classification.plan`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bit_paddle.config.run_settings import RunSettings
from bit_paddle.config.types import AUTO
from bit_paddle.models.architecture import Architecture
from bit_paddle.recipes import hyperrule
from bit_paddle.runs import folder
from bit_paddle.system import environment, processes
from bit_paddle.system.text import plural
from bit_paddle.training import description, initialization

if TYPE_CHECKING:
    from bit_paddle.runs.logbook import Logbook
    from bit_paddle.system.signals import Interrupt
    from bit_paddle.training.task import Task


@dataclass(frozen=True)
class Plan(ABC):
    """All decisions about a run before it starts."""

    settings: RunSettings
    architecture: Architecture
    checkpoint: Path | None  # None: random weights
    schedule: hyperrule.Schedule
    skipped: tuple[str, ...]  # the fault of each skipped image
    start: folder.Start

    # --- The task's own -------------------------------------------------------------------------

    @abstractmethod
    def task(self, log: Logbook, stop: Interrupt) -> Task:
        """Return the task, which writes to ``log`` and ends early by ``stop``. Loads Paddle.

        The processes have not met yet: it must not communicate.
        """

    @property
    @abstractmethod
    def tested(self) -> bool:
        """Whether there are test images to measure at the end."""

    @property
    @abstractmethod
    def data_identity(self) -> dict[str, Any]:
        """The data that decide the result; a resumed run compares them with its checkpoint's."""

    @property
    @abstractmethod
    def test_identity(self) -> dict[str, Any] | None:
        """The test data, with the number of ``images``; None if there are none.

        A run resumes with other test images too, as they decide nothing; a note reports it.
        """

    @property
    @abstractmethod
    def model_notes(self) -> dict[str, Any]:
        """What a user of the model must know, for its file. ``crop`` is the side of its images."""

    @abstractmethod
    def estimated_split(self, share: int, memory: int, half: bool) -> int:
        """Return in how many parts ``share`` images fit into ``memory`` bytes of activations."""

    @abstractmethod
    def activation_memory(self, memory: int, half: bool, shared: int) -> int:
        """Return the bytes for activations on a GPU of ``memory`` bytes.

        ``half``: activations are in half precision. ``shared``: the number of GPUs that share the
        momentum.
        """

    @abstractmethod
    def rows(self) -> list[tuple[str, str]]:
        """Return the plan as a (title, text) per line."""

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """Return the task's own part of `to_dict`."""

    @abstractmethod
    def task_notes(self) -> list[str]:
        """Return the task's own part of `notes`."""

    # --- For every task -------------------------------------------------------------------------

    def batch_split(self, memory: int, amp: str = "off", processes: int = 1) -> int:
        """Return the number of micro-batches in the share of each of ``processes``.

        A process has ``memory`` bytes for activations, which are float32 if ``amp`` is off.
        """
        if self.settings.batch_split != AUTO:
            return self.settings.batch_split
        return self.estimated_split(-(-self.settings.batch // processes), memory, amp != "off")

    def describe(self) -> str:
        """Return the plan as aligned lines."""
        return description.aligned(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, for ``plan.json``, which the report of a run reads."""
        return {
            "rows": [list(row) for row in self.rows()],
            "steps": self.schedule.steps,
            "schedule": asdict(self.schedule),
            **self.details(),
        }

    def notes(self) -> list[str]:
        """Return notes for the user on the start, the data and the recipe, one per line."""
        notes = [
            *self.start.notes,
            *self._test_notes(),
            *self.task_notes(),
            *initialization.notes(self.checkpoint),
        ]
        if self.skipped:
            more = f" and {len(self.skipped) - 5:,} more" if len(self.skipped) > 5 else ""
            notes.append(
                f"{plural(len(self.skipped), 'unreadable image')} skipped (--on_bad_image skip): "
                f"{'; '.join(self.skipped[:5])}{more}"
            )
        return notes

    @property
    def cache_bytes(self) -> int:
        """Size of each process's cache of decoded training images, in bytes."""
        if self.settings.cache_gb is None:
            count = max(self.settings.nproc, processes.world_size())
            return environment.memory_bytes() // 4 // count
        return int(self.settings.cache_gb * 1e9)

    def _test_notes(self) -> list[str]:
        """Return a note if the test images are not those of the run's checkpoint."""
        if not self.start.checkpoints:
            return []
        before, now = self.start.checkpoints[0].notes.get("test"), self.test_identity
        if before == now:
            return []
        counts = [part["images"] if part else 0 for part in (before, now)]
        return [
            f"the test images have changed since the run's checkpoint ({counts[0]:,} -> "
            f"{counts[1]:,}); the run resumes, as they decide nothing, and measures the new ones"
        ]


def schedule_of(settings: RunSettings, images: int) -> hyperrule.Schedule:
    """Return the schedule for ``images`` training images."""
    schedule = settings.recipe_schedule(images)
    if settings.steps is not None:
        schedule = schedule.scaled(settings.steps)
    return schedule if settings.warmup is None else replace(schedule, warmup=settings.warmup)
