"""The kinds of files that `fuzz` mutates: valid files of each kind, and how they are read.

A target is a function of a folder for its files. It returns (contents, read). The function
``read(content, way)`` reads a mutation of ``contents[way]``, and may raise the package's errors.
"""

from __future__ import annotations

import asyncio
import io
import json
import lzma
import os
import pickle
import shutil
import sys
import tarfile
import time
import types
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bit_paddle.config import claims, parsing
from bit_paddle.config.saved import differences, load_yaml, to_dict, to_yaml
from bit_paddle.config.settings import Settings
from bit_paddle.data import check
from bit_paddle.data.boxes.reading import read_boxes
from bit_paddle.data.decoding import decode, fault_of, size_of
from bit_paddle.data.readers import archives, cifar, hub_layout, registry
from bit_paddle.errors import BitPaddleError, DataError
from bit_paddle.models import npz
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile, open_container
from bit_paddle.runs import checkpoints, history, logbook, results

ROOT = Path(__file__).resolve().parent.parent.parent

Target = tuple[Sequence[bytes], Callable[[bytes, int], object]]

NAMES = ("amber", "blue")


# --- Parts of several targets -------------------------------------------------------------------


def picture(kind: str = "PNG", size: tuple[int, int] = (12, 10), **options: Any) -> bytes:
    """Return a small image file."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def photos(folder: Path, count: int = 4) -> list[str]:
    """Write images of two classes; return their paths: amber/0.png, blue/0.png …"""
    paths = [f"{name}/{number}.png" for number in range(count) for name in NAMES]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(picture())
    return paths


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def emptied(folder: Path) -> Path:
    """Return ``folder`` without any content."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def opened(dataset: str, datadir: Path | None = None, **options: Any) -> None:
    """Open a data set, and check and decode its images."""
    found = registry.open_dataset(dataset, datadir and str(datadir), **options)
    for images in (found.train, found.val, found.test):
        if images:
            check.require_usable([(images, np.arange(len(images)))], 0)
            for number in range(min(len(images), 8)):
                images.size(number)
                images.image(number)


def small(outputs: int = 2) -> dict[str, np.ndarray]:
    """Return the arrays of a tiny network."""
    random = np.random.default_rng(0)
    shapes = npz.shapes(Architecture((1, 1, 1, 1), 0.5), outputs)
    return {key: random.standard_normal(shape).astype(np.float16) for key, shape in shapes}


# --- Runs and settings --------------------------------------------------------------------------


def of_checkpoint(folder: Path) -> Target:
    arrays = [*small().items(), ("bit_paddle/momentum/x", np.ones(2, np.float32))]
    settings = to_dict(Settings(model="R14x0.5", dataset="digits", from_scratch=True))
    notes = {"progress": asdict(checkpoints.Progress()), "settings": settings, "data": {}}
    path = folder / "checkpoint.npz"
    npz.write(path, arrays[-4:], {**notes, "momentum": False})
    inner = zipfile.ZipFile(path).read(f"{npz.NOTES}.npy")

    def read(content: bytes, way: int) -> None:
        if way:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"{npz.NOTES}.npy", content)
        else:
            path.write_bytes(content)
        with suppress(BitPaddleError), CheckpointFile(path) as file:
            for key in file.shapes:
                file.array(key)
        checkpoints.open_checkpoint(path)

    return [path.read_bytes(), inner], read


def of_run(folder: Path) -> Target:
    """config.yaml, metrics.jsonl, plan.json and result.json of a run's folder."""
    settings = Settings(model="R14x0.5", dataset="digits", from_scratch=True)
    line = {"kind": "train", "step": 1, "loss": 2.3, "lr": 0.0, "time": 1e9}
    lines = "".join(json.dumps({**line, "step": step}) + "\n" for step in range(1, 4))
    result = json.dumps({"steps": 3, "top1": 0.5, "images": {"val": 3}})
    plan = json.dumps({"rows": [["images", "3"]], "steps": 3})
    files = {"config.yaml": to_yaml(settings), logbook.METRICS: lines, results.RESULT: result,
             history.PLAN: plan}  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(content)

    def read(content: bytes, way: int) -> None:
        path = folder / list(files)[way]
        path.write_bytes(content)
        try:
            differences(load_yaml(folder / "config.yaml"), settings)
            parsing.parse(["--config", str(folder / "config.yaml")], "fuzz", registry.find)
            with logbook.Logbook(folder) as log:
                log._console = False
                log.rewind(2, 1)
            results.result(folder, settings)
            history.read(folder)
        finally:
            path.write_text(files[path.name])

    return [content.encode() for content in files.values()], read


def of_yaml(folder: Path) -> Target:
    """Descriptions of data sets, and claims."""
    data = "reader: list\ndatadir: .\ntrain: train.csv\nval: val.csv\nclasses: [cat, dog]\n"
    data += "val_fraction: 0.1\nflip: false\nrandom_crop: true\nresolution: small\n"
    merged = "reader: folder\nclasses: {a: [cat, dog], b: }\npixel_range: [0, 4095]\n"
    claim = (ROOT / "configs/claims").glob("*.yaml") if (ROOT / "configs/claims").is_dir() else []
    contents = [data.encode(), merged.encode(), *(path.read_bytes() for path in sorted(claim)[:3])]

    def read(content: bytes, way: int) -> None:
        path = folder / "x.yaml"
        path.write_bytes(content)
        registry.find(str(path), need_datadir=False) if way < 2 else claims.read(path, "x")

    return contents, read


# --- Images and data sets -----------------------------------------------------------------------

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000")


def of_images(folder: Path) -> Target:
    contents = [picture(kind, (40, 30)) for kind in FORMATS]
    contents += [picture("JPEG", (40, 30), progressive=True), picture("TIFF", compression="jpeg")]

    def read(content: bytes, way: int) -> None:
        with suppress(BitPaddleError):
            size_of(content, "x.jpg")
        fault_of(content, "x.jpg")
        decode(content, "x.jpg")

    return contents, read


def of_lists(folder: Path) -> Target:
    """Lists with one label, lists of names, labels.csv, tables of 0 and 1, files of --exclude."""
    paths = photos(folder)
    rows = [f"{path},{path.split('/')[0]}" for path in paths]
    several = ["path,labels", *(f"{path},amber;blue" for path in paths)]
    table = ["image,amber,blue", *(f"{path},1,{k % 2}" for k, path in enumerate(paths))]
    names = {"train.csv": [*rows, *rows], "train.tsv": [row.replace(",", "\t") for row in rows],
             "train.txt": [f"{path} {k % 2}" for k, path in enumerate(paths)],
             "label_list.txt": ["0 amber", "1 blue"], "labels.csv": several,
             "table.csv": table, "bad.txt": ["# none", paths[0]]}  # fmt: skip

    def read(content: bytes, way: int) -> None:
        name, path = list(names)[way], folder / list(names)[way]
        path.write_bytes(content)
        try:
            if name == "labels.csv":
                opened("folder", folder, separator=";")
            elif name == "table.csv":
                path.rename(folder / "train.csv")
                opened("table", folder, val_fraction=0.3)
            elif name == "bad.txt":
                opened("folder", folder, exclude=str(path))
            else:
                if name == "label_list.txt":
                    (folder / "train.txt").write_text("\n".join(names["train.txt"]))
                opened("list", folder, val_fraction=0.3)
        finally:
            for one in ("train.csv", "train.txt", name):
                (folder / one).unlink(missing_ok=True)

    return ["\n".join(lines).encode() for lines in names.values()], read


def of_boxes(folder: Path) -> Target:
    """COCO (boxes, and labels of images), Pascal VOC and YOLO."""
    photos(folder / "images")
    images = [{"id": k, "file_name": f"amber/{k}.png", "width": 12, "height": 10} for k in range(4)]
    boxes = [{"id": k, "image_id": k, "category_id": 1 + k % 2, "bbox": [1, 1, 5, 5], "area": 25,
              "iscrowd": 0} for k in range(4)]  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)]
    coco = json.dumps({"images": images, "annotations": boxes, "categories": categories})
    voc = "<annotation><filename>0.png</filename><size><width>12</width><height>10</height></size>"
    voc += "<object><name>blue</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>6</xmax><ymax>7"
    voc += "</ymax></bndbox></object></annotation>"
    yolo, texts = "0 0.5 0.5 0.2 0.3\n1 0.5 0.5 0.9 0.9\n", "names: {0: amber, 1: blue}\n"

    def read(content: bytes, way: int) -> None:
        if way < 2:
            (folder / "annotations.json").write_bytes(content)
            if way:
                opened("coco", folder, val_fraction=0.3)
            else:
                read_boxes(folder / "annotations.json", folder / "images", on_bad_box="skip")
            return
        home = emptied(folder / "labels")
        if way == 4:
            (home / "0.txt").write_text(yolo)
            (home / "data.yaml").write_bytes(content)
        else:
            (home / ("0.xml" if way == 2 else "0.txt")).write_bytes(content)
        names = None if way in (2, 4) else NAMES
        for on_bad_box in ("error", "skip"):
            read_boxes(home, folder / "images/amber", names, on_bad_box)

    return [text.encode() for text in (coco, coco, voc, yolo, texts)], read


def of_cifar(folder: Path) -> Target:
    """Batches and names of CIFAR (pickles), and its archive."""
    layout = cifar.LAYOUTS["cifar10"]
    home, members = folder / layout.folder, {layout.meta: {layout.names: [b"a", b"b"]}}
    for number, member in enumerate((*layout.train, *layout.val)):
        pixels = np.random.default_rng(number).integers(0, 256, (3, 3072), np.uint8)
        members[member] = {b"data": pixels, layout.labels: [0, 1, 1], b"filenames": [b"x"] * 3}
    home.mkdir()
    blobs = {name: pickle.dumps(content, 2) for name, content in members.items()}
    for name, blob in blobs.items():
        (home / name).write_bytes(blob)
    first, archive = layout.train[0], emptied(folder / "archive") / layout.archive

    def read(content: bytes, way: int) -> None:
        if way == 2:
            archive.write_bytes(content)
            opened("cifar10", archive.parent)
            return
        name = (first, layout.meta)[way]
        (home / name).write_bytes(content)
        try:
            opened("cifar10", folder)
        finally:
            (home / name).write_bytes(blobs[name])

    whole = tar({f"{layout.folder}/{name}": blob for name, blob in blobs.items()}, "w:gz")
    return [blobs[first], blobs[layout.meta], whole], read


def of_archives(folder: Path) -> Target:
    """Folders of classes in archives of every kind; Omniglot's images come in one, too."""
    source = folder / "source"
    members = {f"train/{path}": (source / path).read_bytes() for path in photos(source, 2)}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    ends = (".zip", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2")
    modes = (None, "w", "w:gz", "w:xz", "w:bz2")

    def read(content: bytes, way: int) -> None:
        path = folder / f"x{ends[way]}"
        path.write_bytes(content)
        shutil.rmtree(Path(os.environ["BIT_PADDLE_HOME"], "archives"), ignore_errors=True)
        home = archives.cached(path)
        outside = [one for one in home.rglob("*") if one.is_symlink() or not one.exists()]
        assert not outside, outside
        opened("folder", path)

    return [packed.getvalue(), *(tar(members, mode) for mode in modes[1:])], read


def of_shards(folder: Path) -> Target:
    """Tars of other programs; the index, the arrays and the tars that `pack` writes."""
    from bit_paddle import pack

    members = {}
    for number in range(4):
        members[f"{number}.png"] = picture()
        members[f"{number}.cls" if number % 2 else f"{number}.json"] = (
            str(number % 2).encode() if number % 2 else b'{"label": 1, "width": 12}'
        )
    foreign = folder / "foreign"
    photos(folder / "source")
    pack(folder / "source", folder / "own")
    own = [path for path in sorted((folder / "own").rglob("*")) if path.is_file()]
    blobs = {path: path.read_bytes() for path in own}

    def read(content: bytes, way: int) -> None:
        if not way:
            home = Path(os.environ["BIT_PADDLE_HOME"], "shards")
            shutil.rmtree(home, ignore_errors=True)
            (emptied(foreign) / "train-0.tar").write_bytes(content)
            opened("shards", foreign, val_fraction=0.3)
            return
        path = own[way - 1]
        path.write_bytes(content)
        try:
            opened(str(folder / "own/data.yaml"))
        finally:
            path.write_bytes(blobs[path])

    return [tar(members), *blobs.values()], read


def of_parquet(folder: Path) -> Target:
    """Parquet files, and the README.md of a data set of the hub."""
    import pyarrow
    import pyarrow.parquet

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = [{"bytes": picture(), "path": f"{k}.png"} for k in range(4)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}
    table = pyarrow.table({"image": pyarrow.array(images, kind), "label": [0, 1, 1, 0]})
    stream = io.BytesIO()
    info = json.dumps({"info": {"features": features}})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": info}), stream)
    card = "---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: x.parquet\n"
    card += "dataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n"
    card += "        names: {'0': amber, '1': blue}\n---\n"

    def read(content: bytes, way: int) -> None:
        if way:
            front = hub_layout.front_matter(content.decode(errors="replace"))
            hub_layout.class_names(front, None)
            hub_layout.find_subset(["x.parquet"], front, None)
            return
        shutil.rmtree(os.environ["BIT_PADDLE_HOME"], ignore_errors=True)
        (folder / "train.parquet").write_bytes(content)
        opened("hf", folder, val_fraction=0.3)

    return [stream.getvalue(), card.encode()], read


def of_flowers(folder: Path) -> Target:
    """The .mat files of the flowers, and a list of the pets."""
    from scipy.io import savemat

    flowers, pets = folder / "flowers", folder / "pets"
    (flowers / "jpg").mkdir(parents=True)
    (pets / "images").mkdir(parents=True)
    (pets / "annotations").mkdir()
    labels, lists = {"labels": [[1, 1, 3, 3]]}, {"trnid": [[1, 3]], "tstid": [[2, 4]]}
    for number in range(1, 5):
        (flowers / f"jpg/image_{number:05d}.jpg").write_bytes(picture("JPEG"))
        (pets / f"images/Cat_{number}.jpg").write_bytes(picture("JPEG"))
    savemat(flowers / "imagelabels.mat", labels)
    savemat(flowers / "setid.mat", {**lists, "valid": [[1]]})
    pairs = "".join(f"Cat_{number} {number} 1 1\n" for number in (1, 2)).replace(" 2 1", " 1 1")
    (pets / "annotations/trainval.txt").write_text(pairs)
    (pets / "annotations/test.txt").write_text(pairs)
    files = [flowers / "imagelabels.mat", flowers / "setid.mat", pets / "annotations/test.txt"]
    blobs = [path.read_bytes() for path in files]

    def read(content: bytes, way: int) -> None:
        files[way].write_bytes(content)
        try:
            name = "oxford_iiit_pet" if way == 2 else "oxford_flowers102"
            opened(name, files[way].parents[way == 2])
        finally:
            files[way].write_bytes(blobs[way])

    return blobs, read


# --- Models -------------------------------------------------------------------------------------


def read_weights(path: Path) -> None:
    """Read the facts of a file of weights, and all its arrays."""
    from bit_paddle.inference.trained import find_trained

    with CheckpointFile(path) as file:
        for key in file.shapes:
            file.array(key)
    find_trained(str(path))


def of_npz(folder: Path) -> Target:
    """Files of this package, compressed ones, and flax's tree of big_vision."""
    npz.write(folder / "x.npz", small().items(), {"classes": list(NAMES), "crop": 32})
    np.savez_compressed(folder / "y.npz", **small())
    flax = lzma.decompress((ROOT / "tests/data/big_vision.npz.xz").read_bytes())

    def read(content: bytes, way: int) -> None:
        (folder / "z.npz").write_bytes(content)
        read_weights(folder / "z.npz")

    return [(folder / "x.npz").read_bytes(), (folder / "y.npz").read_bytes(), flax], read


def of_foreign(folder: Path) -> Target:
    """Models of timm, Paddle and transformers: .safetensors, .pth, .pdparams, indices, settings."""
    wanted = (
        "timm/net.safetensors",
        "timm/net.pth",
        "paddle/3.3.1.pdparams",
        "transformers/shards",
    )
    with tarfile.open(ROOT / "tests/data/foreign-models.tar.xz") as archive:
        for member in archive:
            if member.isreg() and member.name.startswith(wanted):
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    blobs = [path.read_bytes() for path in files]

    def read(content: bytes, way: int) -> None:
        files[way].write_bytes(content)
        try:
            read_weights(files[way].parent if files[way].parent.name == "shards" else files[way])
        finally:
            files[way].write_bytes(blobs[way])

    return blobs, read


def of_pickles(folder: Path) -> Target:
    """Files of PyTorch and Paddle: all formats and protocols, training checkpoints."""
    home = ROOT / "tests/golden/containers"
    files = sorted([*home.glob("*.pdparams"), *home.glob("*.pth"), *home.glob("*.tar")])
    files = [path for path in files if not path.stem.endswith(("_tensor", "_module"))]

    def read(content: bytes, way: int) -> None:
        path = folder / files[way].name
        path.write_bytes(content)
        file = open_container(path)
        try:
            for name in file.arrays:
                with suppress(BitPaddleError):  # of one array, the others are read
                    file.read(name)
        finally:
            file.close()

    return [path.read_bytes() for path in files], read


def of_keras(folder: Path) -> Target:
    """Files of Keras 2. HDF5's library runs in forks of this process, as Python starts slowly."""
    import h5py  # noqa: F401

    from bit_paddle.models.containers import hdf5, keras

    def fork(command: list[str], timeout: int, **_: Any) -> Any:
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            import signal

            signal.alarm(timeout)
            os.dup2(writable, 1)
            os.close(readable)
            sys.stdout = open(1, "w", encoding="utf-8")  # a test may have put another one there
            sys.argv = command[2:]  # as -c sets it
            try:
                hdf5.main()
            finally:
                os._exit(1)
        os.close(writable)
        with open(readable, "rb") as stream:
            output = stream.read()
        os.waitpid(child, 0)
        return types.SimpleNamespace(stdout=output)

    keras.subprocess = types.SimpleNamespace(run=fork, TimeoutExpired=TimeoutError)
    files = sorted((ROOT / "tests/data").glob("keras-*.h5.xz"))

    def read(content: bytes, way: int) -> None:
        (folder / "x.h5").write_bytes(content)
        read_weights(folder / "x.h5")

    return [lzma.decompress(path.read_bytes()) for path in files], read


def of_onnx(folder: Path) -> Target:
    """ONNX files that this package exports, and the notes beside an export of Paddle Inference."""
    import onnx  # noqa: F401

    from bit_paddle.inference import paddle_inference, trained
    from bit_paddle.inference.formats import FORMATS
    from bit_paddle.models.weights import create_model

    notes = {"classes": list(NAMES), "crop": 32}
    npz.write(folder / "x.npz", small().items(), notes)
    network, file = create_model(folder / "x.npz"), trained.find_trained(str(folder / "x.npz"))
    network.eval()
    FORMATS["onnx"].write(network, file, folder / "x.onnx")
    export = folder / "export"
    export.mkdir()
    trained.write_notes(file, export)
    for name in ("model.json", "model.pdmodel", "model.pdiparams"):
        (export / name).touch()
    others = folder / "y.onnx"

    def read(content: bytes, way: int) -> None:
        path = export / paddle_inference.NOTES if way else others
        path.write_bytes(content)
        trained.find_trained(str(export if way else others))

    return [(folder / "x.onnx").read_bytes(), (export / paddle_inference.NOTES).read_bytes()], read


def of_onnx_data(folder: Path) -> Target:
    """ONNX files with their arrays in a second file, as above 2 GB, and that file."""
    from bit_paddle.inference import onnx_data, onnx_files, trained
    from bit_paddle.inference.formats import FORMATS
    from bit_paddle.models.weights import create_model

    npz.write(folder / "x.npz", small().items(), {"classes": list(NAMES), "crop": 32})
    network, file = create_model(folder / "x.npz"), trained.find_trained(str(folder / "x.npz"))
    network.eval()
    onnx_data.MOST_INLINE = 0
    graph = folder / "x.onnx"
    FORMATS["onnx"].write(network, file, graph)
    files = [graph, onnx_data.path_of(graph)]
    blobs = [path.read_bytes() for path in files]

    def read(content: bytes, way: int) -> None:
        files[way].write_bytes(content)
        try:
            trained.find_trained(str(graph))
            onnx_data.arrays(onnx_files.read(graph), graph)
        finally:
            files[way].write_bytes(blobs[way])

    return blobs, read


# --- Videos and requests ------------------------------------------------------------------------


def of_videos(folder: Path) -> Target:
    import av

    from bit_paddle.inference import videos

    videos.require()
    codecs = {".mp4": "mpeg4", ".mkv": "mpeg4", ".avi": "mpeg4", ".webm": "libvpx"}
    for suffix, codec in codecs.items():
        with av.open(str(folder / f"x{suffix}"), "w") as container:
            stream = container.add_stream(codec, 10)
            stream.pix_fmt, stream.width, stream.height = "yuv420p", 64, 48
            for number in range(20):
                pixels = np.full((48, 64, 3), 12 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())

    def read(content: bytes, way: int) -> None:
        path = folder / f"y{list(codecs)[way]}"
        path.write_bytes(content)
        video = videos.Video(str(path), 0.5)
        for number, _ in enumerate(video.frames()):
            if number == 50:  # a mutated time stamp may say that it lasts for years
                break
        if video.fault is not None:
            raise DataError(video.fault)

    return [(folder / f"x{suffix}").read_bytes() for suffix in codecs], read


def of_requests(folder: Path) -> Target:
    """Bodies of requests, given to the server's application in this process."""
    import hostile

    from bit_paddle.inference.model import TrainedModel
    from bit_paddle.inference.trained import find_trained
    from bit_paddle.serving.app import create_app
    from bit_paddle.serving.settings import ServerSettings

    app = create_app(TrainedModel(find_trained("BiT-Mini")), ServerSettings(batch_wait_ms=0))
    app.state.engine.start()
    while not app.state.engine.ready:
        time.sleep(0.1)
    loop = asyncio.new_event_loop()
    features = {"features": "AAAAAA==" * 96, "labels": [0, 1], "classes": list(NAMES)}
    images = [(("/predict", "/features", "/explain", "/predict?top=3")[k % 4], *one)
              for k, one in enumerate(hostile.whole())]  # fmt: skip
    requests = [*images, *(("/teach", *hostile.as_json(features)) for _ in range(2))]

    async def answered(path: str, headers: dict[str, str], body: bytes) -> int:
        path, _, query = path.partition("?")
        raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
        raw += [(b"content-length", str(len(body)).encode()), (b"host", b"localhost")]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "path": path,
                 "method": "POST", "scheme": "http", "headers": raw, "raw_path": path.encode(),
                 "query_string": query.encode(), "client": ("127.0.0.1", 9), "root_path": "",
                 "server": ("localhost", 80)}  # fmt: skip
        messages, statuses = [{"type": "http.request", "body": body, "more_body": False}], []

        async def receive() -> dict[str, Any]:
            while not messages:
                await asyncio.sleep(60)
            return messages.pop()

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status"))

        await app(scope, receive, send)
        return statuses[0]

    def read(content: bytes, way: int) -> None:
        path, headers, _ = requests[way]
        status = loop.run_until_complete(answered(path, headers, content))
        assert status < 500, f"status {status}"
        if status != 200:
            raise DataError(f"status {status}")

    def whole(content: bytes, way: int) -> None:
        try:
            read(content, way)
        except DataError:
            if content != requests[way][2]:  # web addresses are refused in any case
                raise

    return [body for *_, body in requests], whole


TARGETS: dict[str, Callable[[Path], Target]] = {
    "checkpoint": of_checkpoint,
    "run": of_run,
    "yaml": of_yaml,
    "images": of_images,
    "lists": of_lists,
    "boxes": of_boxes,
    "cifar": of_cifar,
    "archives": of_archives,
    "shards": of_shards,
    "parquet": of_parquet,
    "flowers": of_flowers,
    "npz": of_npz,
    "foreign": of_foreign,
    "pickles": of_pickles,
    "keras": of_keras,
    "onnx": of_onnx,
    "onnx_data": of_onnx_data,
    "videos": of_videos,
    "requests": of_requests,
}
