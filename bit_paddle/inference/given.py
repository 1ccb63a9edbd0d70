"""What `predict` is given: images, and then the frames of videos, as outputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from bit_paddle.data import loader
from bit_paddle.data.preprocessing import Look
from bit_paddle.errors import ConfigError
from bit_paddle.inference import videos, views
from bit_paddle.inference.inputs import GivenImages, ReadableImages
from bit_paddle.inference.videos import Video
from bit_paddle.system import progress

Outputs = Iterator[tuple[np.ndarray, np.ndarray]]  # values [N, K], indices [N] into the names


class Given:
    """The images of ``paths``, and one frame every ``every`` seconds of the videos among them.

    ``names`` are those of the images. That of a frame, such as ``clip.mp4 0:01.500``, is added when
    it is read. Raises `ConfigError` if PyAV is missing for a video.
    """

    def __init__(self, names: Sequence[str], paths: Sequence[str], every: float):
        self.videos = [Video(path, every) for path in paths if videos.is_video(path)]
        if self.videos:
            videos.require()
        still = [pair for pair in zip(names, paths) if not videos.is_video(pair[1])]
        self.names = [name for name, _ in still]
        self.paths = dict(still)
        self.images = ReadableImages([path for _, path in still])

    @property
    def faults(self) -> list[str]:
        """What could not be read so far."""
        faults = [video.fault for video in self.videos if video.fault is not None]
        return [*self.images.broken.values(), *faults]

    def require_images(self, flag: str) -> None:
        """Raise `ConfigError` if there are videos, which ``flag`` cannot work with."""
        if self.videos:
            raise ConfigError(f"{flag}: works with images, and {self.videos[0].path} is a video")

    def outputs(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        looks: Sequence[Look],
        batch: int,
        workers: int,
        loss: str,
    ) -> Outputs:
        """Yield the outputs of all images and frames; the arguments are those of `views.infer`."""
        yield from self.readable(views.infer(compute, self.images, looks, batch, workers, loss))
        for video in self.videos:
            yield from self._frames(video, compute, looks, batch, loss)

    def readable(self, stream: Iterable[tuple[np.ndarray, loader.MicroBatch]]) -> Outputs:
        """Yield the outputs of the images that could be read."""
        with progress.progress_bar(desc="images", unit="img", total=len(self.images)) as bar:
            for values, part in stream:
                bar.update(len(values))
                good = np.array([index not in self.images.broken for index in part.indices])
                yield values[good], part.indices[good]

    def _frames(
        self,
        video: Video,
        compute: Callable[[np.ndarray], np.ndarray],
        looks: Sequence[Look],
        batch: int,
        loss: str,
    ) -> Outputs:
        """Yield the outputs of a video's frames; all looks at a frame are made when it is read."""
        waiting: list[list[np.ndarray]] = []  # per frame, its pixels by each look
        first = len(self.names)

        def computed() -> tuple[np.ndarray, np.ndarray]:
            found = [compute(np.concatenate(pixels)) for pixels in zip(*waiting)]
            indices = np.arange(len(self.names) - len(waiting), len(self.names))
            waiting.clear()
            return views.joined(found, loss), indices

        with progress.progress_bar(desc=video.path, unit="frames") as bar:
            for seconds, picture in video.frames():
                source = GivenImages([picture])
                parts = loader.batches_of_looks(source, looks, batch=1, workers=0)
                waiting.append([part.images for part in parts])
                self.names.append(f"{video.path} {videos.clock(seconds)}")
                bar.update(1)
                if len(waiting) == batch:
                    yield computed()
            if waiting:
                yield computed()
        if len(self.names) == first and video.fault is None:
            video.fault = f"{video.path}: has no pictures"
