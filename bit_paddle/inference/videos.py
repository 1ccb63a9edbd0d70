"""Videos: one frame every so many seconds, read by PyAV in order, with one frame in memory.

The frame of a time is the one that a player shows then. Times count from the first frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from PIL import Image

from bit_paddle.errors import ConfigError, install_hint

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")

# Nothing but the file itself is read: no playlist, and no address that a file names.
_SAFE = {"format_whitelist": "mov,matroska,avi", "protocol_whitelist": "file"}

_MOST_PIXELS = 2**27  # of a frame: 16 times those of 4K

_SLACK = 1e-6  # seconds, for the rounding of times

_MISSING = 1.0  # seconds at the end that may be missing: the header rounds, and counts the sound


class _Damaged(Exception):
    """The file cannot be read on; PyAV itself may not notice."""


def is_video(path: str | os.PathLike) -> bool:
    """Return whether the name of a file is that of a video."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def require() -> None:
    """Raise `ConfigError` if PyAV is not installed."""
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"videos need PyAV ({error}); {install_hint('video')}") from error
    av.logging.set_level(av.logging.PANIC)  # `Video.fault` reports


def clock(seconds: float) -> str:
    """Return a time in a video as hours, minutes and seconds: 0:01.500, 1:02:03.000."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    first = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{first}:{rest:02}.{thousandths:03}"


class Video:
    """A video file that gives one frame every ``every`` seconds.

    ``fault`` is None, or the reason why `frames` has ended early.
    """

    def __init__(self, path: str, every: float):
        self.path, self.every = path, every
        self.fault: str | None = None

    def frames(self) -> Iterator[tuple[float, Image.Image]]:
        """Yield (seconds, RGB image, upright); of a damaged video, those before the damage."""
        number, last, end = 0, None, 0.0
        for begin, frame in self._decoded():
            while last is not None and number * self.every < begin - _SLACK:
                yield number * self.every, _upright(last)
                number += 1
            last, end = frame, begin
        if last is not None and number * self.every <= end + _SLACK:
            yield number * self.every, _upright(last)

    def _decoded(self) -> Iterator[tuple[float, Any]]:
        """Yield (seconds, frame) for every frame; a fault is kept, not raised."""
        import av

        seconds, start = 0.0, None
        try:
            with av.open(self.path, options=_SAFE, metadata_errors="replace") as container:
                if not container.streams.video:
                    raise _Damaged("it has no pictures")
                if container.streams.video[0].codec_context is None:
                    raise _Damaged("no decoder knows its format")
                base = container.streams.video[0].time_base  # that of a frame may be wrong
                for frame in _frames(container):
                    if frame.is_corrupt:
                        raise _Damaged("the next picture is damaged")
                    if frame.width * frame.height > _MOST_PIXELS:
                        raise _Damaged(f"its pictures have {frame.width} x {frame.height} pixels")
                    start = frame.pts if start is None else start
                    seconds = float((frame.pts - start) * base)
                    yield seconds, frame
                length = _length(container)
                if length is not None and length > seconds + _MISSING:
                    raise _Damaged(f"its header says that it is {clock(length)} long")
        except (av.error.FFmpegError, _Damaged) as error:
            reason = getattr(error, "strerror", None) or error
            self.fault = f"{self.path}: cannot be read after {clock(seconds)}: {reason}"


def _frames(container: Any) -> Iterator[Any]:
    """Yield the frames of the first video stream; at a fault, first those that are decoded."""
    import av

    stream = container.streams.video[0]
    stream.thread_type = "NONE"  # several threads can wait for each other for ever after damage
    try:
        yield from container.decode(stream)
    except av.error.FFmpegError:
        yield from stream.codec_context.decode(None)
        raise


def _length(container: Any) -> float | None:
    """Return the seconds of the pictures by the header; None if it does not say that."""
    stream = container.streams.video[0]
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6  # microseconds
    return None


def _upright(frame: Any) -> Image.Image:
    """Return a frame as an RGB image, turned as its file says."""
    image = frame.to_image()
    turn = frame.rotation  # degrees against the clock
    return image.rotate(turn, expand=True) if turn else image
