"""Memory that does not suffice for all threads that decode images."""

import os
import threading
import time

import pytest

from bit_paddle.data import decoding, loader, threads
from bit_paddle.data.boxes import looks
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry


def classified(images, workers):
    for part in loader.evaluation_batches(images, Preprocessing(32), 8, workers):
        yield part.images.tobytes()


def with_boxes(images, workers):
    for seen in looks.evaluation_views(images, range(len(images)), looks.Looks(32), workers):
        yield from (pixels.tobytes() for pixels in seen.pixels)


@pytest.mark.parametrize("make", [classified, with_boxes])
def test_images_that_memory_does_not_suffice_for_are_decoded_one_by_one(
    make, image_folder, monkeypatch, capsys
):
    """Here there is memory for one at a time. They have the same bits, and it is said once."""
    images = registry.open_dataset("folder", str(image_folder)).val
    expected, to_rgb = list(make(images, 0)), decoding.to_rgb
    alone, failed, failures = threading.Lock(), threading.Event(), []

    def greedy(*arguments):
        if not alone.acquire(blocking=False):
            failures.append(1)
            failed.set()
            raise MemoryError
        try:
            assert failed.wait(60)  # until another thread has tried, too
            return to_rgb(*arguments)
        finally:
            alone.release()

    monkeypatch.setattr(decoding, "to_rgb", greedy)
    threads._say_once_that_memory_ran_out.cache_clear()
    assert list(make(images, 4)) == expected and failures
    assert capsys.readouterr().err.count("warning: out of memory while several threads") == 1


def test_one_image_that_is_too_many_is_an_error():
    def fail():
        raise MemoryError

    told = pytest.raises(MemoryError, match="nothing else under way; take a smaller --cache_gb")
    with threads.Threads(2) as pool, told:
        threads.results(pool, [fail], [pool.submit(fail)], [])


def test_threads_start_once_and_a_stream_that_ends_early_leaves_nothing_to_do(image_folder):
    """No thread starts later, when memory may have run out."""
    images = registry.open_dataset("folder", str(image_folder)).val
    stream = classified(images, 3)
    next(stream)
    running = {thread.name for thread in threading.enumerate()}
    others = [*classified(images, 3)]
    assert {thread.name for thread in threading.enumerate()} == running and len(others) == 2
    stream.close()
    calls, pause = [], threading.Event()
    with threads.Threads(1) as pool:
        pool.submit(pause.wait)
        late = pool.submit(calls.append, 1)
        threading.Timer(0.1, pause.set).start()
    assert late.cancelled() and not calls


def test_a_fork_has_threads_of_its_own():
    with threads.Threads(2) as pool:
        assert pool.submit(int).result() == 0
    child = os.fork()
    if not child:
        with threads.Threads(2) as pool:
            os._exit(7 if pool.submit(int).result() == 0 else 1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
    assert os.waitstatus_to_exitcode(ended[1]) == 7
