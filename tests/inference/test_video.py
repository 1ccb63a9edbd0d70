"""Videos in ``predict``: which frames, at which times, in which orientation; damaged files."""

import csv
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import environment_with, run_here, run_outside

import bit_paddle as bit
from bit_paddle.inference.videos import Video, clock

av = pytest.importorskip("av")

COLOURS = {"amber": (230, 60, 60), "blue": (60, 230, 60), "coral": (60, 60, 230)}
CODECS = {".mp4": "mpeg4", ".mov": "mpeg4", ".mkv": "mpeg4", ".avi": "mpeg4", ".webm": "libvpx"}


def picture(colour, height=48, width=64):
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = colour
    return pixels


def write_video(path, pictures, rate=10, codec=None, options=None):
    """Write arrays uint8 [H, W, 3] as a video, ``rate`` pictures per second; return its path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or CODECS[path.suffix], rate, options)
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for number, pixels in enumerate(pictures):
            if not number:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def three_colours(path, seconds=1):
    """So many seconds of each colour."""
    return write_video(path, [picture(c) for c in COLOURS.values() for _ in range(10 * seconds)])


def shown(path, every=1.0):
    """[(seconds, name of the nearest colour)], and the fault."""
    video, found = Video(str(path), every), []
    for seconds, image in video.frames():
        mean = np.asarray(image, float).mean(axis=(0, 1))
        distance = {name: np.abs(mean - colour).max() for name, colour in COLOURS.items()}
        found.append((seconds, min(distance, key=distance.get)))
    return found, video.fault


@pytest.fixture(scope="module")
def model(tmp_path_factory, image_folder):
    """A model that tells the three colours."""
    path = tmp_path_factory.mktemp("video") / "colours.npz"
    bit.probe("BiT-Mini", image_folder, output=path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return three_colours(tmp_path_factory.mktemp("video") / "clip.mp4")


# --- The frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00.000"), (1.5, "0:01.500"), (59.9996, "1:00.000"), (3723, "1:02:03.000")],
)
def test_the_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("suffix", CODECS)
def test_the_frames_that_a_player_shows(suffix, tmp_path):
    path, names = three_colours(tmp_path / f"clip{suffix}"), list(COLOURS)
    assert shown(path) == (list(zip((0.0, 1.0, 2.0), names)), None)
    found, fault = shown(path, 0.25)
    assert [name for _, name in found] == [name for name in names for _ in range(4)]
    assert [seconds for seconds, _ in found] == [k / 4 for k in range(12)] and fault is None
    assert shown(path, 10)[0] == [(0.0, "amber")]


def test_frames_at_every_tenth_are_all_frames(tmp_path):
    """Also where the times of the container are rounded, and count from another start."""
    greys = range(0, 250, 10)
    for suffix in CODECS:
        path = write_video(tmp_path / f"grey{suffix}", (picture((g, g, g)) for g in greys))
        means = [np.asarray(image).mean() for _, image in Video(str(path), 0.1).frames()]
        assert len(means) == len(greys)
        assert np.abs(np.array(means) - list(greys)).max() < 8


@pytest.mark.parametrize("turns, corner", [(0, (0, 0)), (1, (0, 1)), (2, (1, 1)), (3, (1, 0))])
def test_a_turned_video_is_upright(turns, corner, tmp_path):
    """As telephones write it: the pictures lie on their side, and the header says so."""
    scene = picture((20, 20, 20), 48, 96)
    scene[:24, :24] = 235  # a mark in the upper left corner, as the sensor sees it
    path = write_video(tmp_path / "phone.mp4", [scene] * 5)
    content = path.read_bytes()
    header = content.index(b"tkhd") + 4 + 40  # its matrix, of version 0
    assert struct.unpack(">9i", content[header : header + 36])[::4] == (1 << 16, 1 << 16, 1 << 30)
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]  # quarter turns with the clock
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    path.write_bytes(content[:header] + struct.pack(">9i", *matrix) + content[header + 36 :])
    ((_, image),) = Video(str(path), 1).frames()
    assert image.size == ((96, 48), (48, 96))[turns % 2]
    pixels = np.asarray(image).mean(axis=2)
    down, right = corner
    rows = slice(-20, None) if down else slice(20)
    columns = slice(-20, None) if right else slice(20)
    assert pixels[rows, columns].mean() > 180 and pixels.mean() < 100


def test_the_memory_does_not_grow_with_the_length(tmp_path):
    code = (
        "import sys; from bit_paddle.inference.videos import Video\n"
        "from bit_paddle.system.environment import peak_bytes\n"
        "print(sum(1 for _ in Video(sys.argv[1], 0.1).frames()), peak_bytes())"
    )
    random, peaks = np.random.default_rng(0), []
    for seconds in (2, 20):
        pictures = (random.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(10 * seconds))
        path = write_video(tmp_path / f"{seconds}.mp4", pictures)
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        frames, peak = map(int, done.stdout.split())
        assert frames == 10 * seconds
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 20e6  # all 200 frames are 46 MB


# --- Damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".webm"])
def test_a_video_that_was_cut_short(suffix, tmp_path):
    """The frames before the end are there, and the fault is."""
    path = three_colours(tmp_path / f"clip{suffix}", seconds=2)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    found, fault = shown(path)
    assert found[:3] == [(0.0, "amber"), (1.0, "amber"), (2.0, "blue")] and len(found) < 6
    assert fault.startswith(f"{path}: cannot be read after 0:0")


def test_noise_in_the_middle_ends_the_frames(tmp_path):
    random = np.random.default_rng(1)
    pictures = (random.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(60))
    path = write_video(tmp_path / "clip.mp4", pictures)
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat"), content.index(b"moov")
    begin = start + (end - start) // 2
    content[begin : begin + (end - start) // 4] = random.bytes((end - start) // 4)
    path.write_bytes(content)
    found, fault = shown(path, 0.1)
    assert 20 <= len(found) <= 31 and fault is not None


@pytest.mark.skipif("libx264" not in av.codecs_available, reason="PyAV without x264")
def test_damage_anywhere_in_h264_ends_and_the_frames_before_it_are_there(tmp_path):
    """Pictures depend on those since the last whole one, so the group before it counts."""
    random = np.random.default_rng(0)
    scene = random.integers(0, 256, (96, 128, 3), np.uint8)
    path, bad = tmp_path / "good.mp4", tmp_path / "bad.mp4"
    pictures = (np.roll(scene, 3 * k, 1) for k in range(60))
    write_video(path, pictures, codec="libx264", options={"g": "10"})
    expected = [np.asarray(image, int) for _, image in Video(str(path), 0.1).frames()]
    assert len(expected) == 60
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    noticed = 0
    for share in np.linspace(0.1, 0.9, 9):
        content = bytearray(path.read_bytes())
        begin = int(share * len(content))
        content[begin : begin + 40] = random.bytes(40)
        bad.write_bytes(content)
        video = Video(str(bad), 0.1)
        found = [np.asarray(image, int) for _, image in video.frames()]
        whole = sum(end <= begin for end in ends) // 10 * 10
        whole = max(0, whole - 3)  # the last ones may be shown after pictures of the next group
        assert len(found) >= whole
        assert all(np.array_equal(*pair) for pair in zip(found[:whole], expected))
        noticed += video.fault is not None
    assert noticed >= 3


@pytest.mark.parametrize(
    "content", [b"", b"no video at all" * 99, b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n"]
)
def test_files_that_are_no_videos(content, clip, tmp_path):
    """A playlist neither: it would read other files."""
    path = tmp_path / "bad.mp4"
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    path.write_bytes(content)
    found, fault = shown(path)
    assert not found and fault.startswith(f"{path}: cannot be read after 0:00.000: ")


def damaged(content, old, new):
    """Return ``content`` with ``new`` in the place of the only ``old``, of the same length."""
    assert content.count(old) == 1 and len(old) == len(new)
    return content.replace(old, new)


def test_a_codec_that_nobody_knows(clip, tmp_path):
    path = tmp_path / "bad.mp4"
    path.write_bytes(damaged(clip.read_bytes(), b"mp4v", b"zzzz").replace(b"\x20\x11", b"\xfe\x11"))
    found, fault = shown(path)
    assert not found and "cannot be read after 0:00.000" in fault


def test_notes_that_are_no_utf8(clip, tmp_path):
    """They are not shown, so they do no harm."""
    content = clip.read_bytes()
    path = tmp_path / "odd.mp4"
    path.write_bytes(damaged(content, b"Lavf", b"\xf0avf"))
    assert shown(path) == shown(clip)


# --- The command --------------------------------------------------------------------------------


def expected_lines(clip, every=1):
    return [(f"{clip} 0:0{k * every // 1}.000", name) for k, name in enumerate(COLOURS)]


def test_predict_a_video_in_every_format(model, clip, image_folder, tmp_path):
    image = image_folder / "val/blue/0.png"
    words = ("predict", clip, image, "--model", model, "--top", 1)
    expected = [(str(image), "blue"), *expected_lines(clip)]  # images come first
    done = run_here(*words, "--format", "csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["image"], row["class"]) for row in rows] == expected
    done = run_here(*words, "--format", "json")
    found = [(one["image"], one["classes"][0]["class"]) for one in json.loads(done.stdout)]
    assert found == expected
    done = run_here(*words)
    assert [line.split("  ")[0].strip() for line in done.stdout.splitlines()] == [
        name for name, _ in expected
    ]
    done = run_here(*words[:-2], "--features", tmp_path / "f.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["names"].tolist() == [name for name, _ in expected]
        own = bit.load(model, device="cpu").features([image])
        assert np.allclose(arrays["features"][0], own[0], atol=1e-5)


def test_a_small_batch_and_several_views_give_the_same(model, clip):
    """Each batch is computed when it is full; the looks at a frame are averaged as for images."""
    words = ("predict", clip, "--model", model, "--every", 0.5, "--format", "csv")
    found = [run_here(*words, "--batch", batch).stdout for batch in (1, 4, 32)]
    shares = [[float(row["probability"]) for row in csv.DictReader(text.splitlines())]
              for text in found]  # fmt: skip
    assert len(shares[0]) == 18  # 6 frames, 3 classes
    assert np.allclose(shares[0], shares[1], atol=2e-6) and np.allclose(
        shares[1], shares[2], atol=2e-6
    )
    done = run_here(*words, "--views", "flip,five", "--batch", 4)
    assert done.returncode == 0, done.stderr
    (frame, *_) = [image for _, image in Video(str(clip), 0.5).frames()]
    (best,) = bit.load(model, device="cpu")([frame], top=1, views="flip,five")
    first = next(csv.DictReader(done.stdout.splitlines()))
    assert first["class"] == best[0][0]
    assert float(first["probability"]) == pytest.approx(best[0][1], abs=2e-6)


def test_a_damaged_video_ends_with_status_1(model, clip, tmp_path):
    good, bad = three_colours(tmp_path / "good.mkv"), three_colours(tmp_path / "bad.mkv", seconds=2)
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size * 3 // 4])
    done = run_here("predict", bad, good, "--model", model, "--format", "csv", "--top", 1)
    assert done.returncode == 1
    assert f"skipped: {bad}: cannot be read after 0:0" in done.stderr
    rows = [(row["image"], row["class"]) for row in csv.DictReader(done.stdout.splitlines())]
    assert (f"{bad} 0:02.000", "blue") in rows and rows[-3:] == expected_lines(good)


@pytest.mark.parametrize("flag", ["--maps", "--sheet"])
def test_maps_and_sheets_are_of_images(flag, model, clip, tmp_path):
    done = run_here("predict", clip, "--model", model, flag, tmp_path / "x.png")
    assert done.returncode == 2
    assert f"{flag}: works with images, and {clip} is a video" in done.stderr


def test_without_pyav_the_extra_is_named(model, clip, tmp_path):
    (tmp_path / "av.py").write_text("raise ImportError('not this time')")
    path = f"{tmp_path}:{Path(bit.__file__).parents[1]}"
    done = run_outside(*("predict", clip, "--model", model), env=environment_with(PYTHONPATH=path))
    assert done.returncode == 2 and "videos need PyAV (not this time)" in done.stderr
    assert "'.[video]'" in done.stderr
