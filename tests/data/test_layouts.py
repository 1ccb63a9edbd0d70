"""Folders and lists as people really have them: each test holds one kind by its right value."""

import hashlib
import io
import shutil
import tarfile

import pytest
from PIL import Image
from servers import Server
from test_folders import list_of, names_of, write_images

from bit_paddle import evaluate, predict
from bit_paddle.config import parsing
from bit_paddle.data.readers import listing, registry, tf_flowers
from bit_paddle.errors import ConfigError, DataError, DownloadError, MissingFileError
from bit_paddle.inference import arguments


def opened(reader, folder, **more):
    return registry.open_dataset(reader, str(folder), **more)


def described(folder, **keys):
    """Return the path of a data set's file in ``folder``."""
    lines = ["reader: list", "datadir: .", *(f"{key}: {value}" for key, value in keys.items())]
    list_of(folder, "data.yaml", lines)
    return str(folder / "data.yaml")


# --- What systems leave in folders ---------------------------------------------------------------

SYSTEM = (
    *("@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "@eadir/2.jpg", "lost+found/3.jpg"),
    *("$RECYCLE.BIN/4.jpg", "__MACOSX/a/5.jpg", "System Volume Information/6.jpg"),
    *(".ipynb_checkpoints/7.jpg", "#recycle/8.jpg", "a/@eaDir/9.jpg", "b/.AppleDouble/10.jpg"),
    *("a/._1.jpg", "a/Thumbs.db", "b/desktop.ini"),
)


def test_system_folders_are_no_classes(tmp_path):
    write_images(tmp_path, *(f"train/{label}/{k}.jpg" for label in "ab" for k in range(2)))
    write_images(tmp_path, "val/a/1.jpg", "val/b/1.jpg", "val/@eaDir/1.jpg")
    write_images(tmp_path, *(f"train/{path}" for path in SYSTEM))
    data = opened("folder", tmp_path)
    assert data.train.classes == ["a", "b"]
    assert data.train.paths == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"]
    assert data.val.paths == ["a/1.jpg", "b/1.jpg"]
    train, val = data.notes
    assert train.startswith("13 hidden or system files and folders in") and "@eaDir 2" in train
    assert val.startswith("1 hidden or system") and "(@eaDir 1)" in val


def test_a_class_may_look_like_a_system_folder():
    for name in ("recycle", "Recycler", "temporary", "macosx", "lost and found", "#1", "@home"):
        assert not listing.is_left_out(name)


# --- One folder in another -----------------------------------------------------------------------

FLOWERS = [f"{label}/{k}.jpg" for label in ("daisy", "roses") for k in range(20)]


@pytest.mark.parametrize("outer", ["flower_photos", "one/two/three"])
def test_a_single_folder_is_entered(outer, tmp_path):
    write_images(tmp_path / "plain", *FLOWERS)
    write_images(tmp_path / "deep" / outer, *FLOWERS)
    write_images(tmp_path / "deep", "__MACOSX/x/1.jpg")
    (tmp_path / "deep/LICENSE.txt").write_text("CC-BY")
    plain, deep = (opened("folder", tmp_path / name) for name in ("plain", "deep"))
    assert [names_of(part) for part in deep[:2]] == [names_of(part) for part in plain[:2]]
    assert len(deep.val) == 4 and deep.val.root == tmp_path / "deep" / outer
    note = f"{tmp_path / 'deep'} holds a single folder, so the data are read from"
    assert f"{note} {deep.val.root}" in deep.notes and len(deep.notes) == len(plain.notes) + 1


def test_parts_in_a_single_folder(tmp_path):
    write_images(tmp_path, *(f"x/{part}/{name}" for part in ("train", "val") for name in FLOWERS))
    data = opened("folder", tmp_path)
    assert len(data.train) == len(data.val) == 40 and "read from" in data.notes[0]


@pytest.mark.parametrize(
    "paths, words",
    [
        (["cat/1.jpg", "cat/2.jpg"], r"1 class folders \(cat\)"),
        (["1.jpg", "x/a/1.jpg", "x/b/1.jpg"], r"1 class folders \(x\)"),
        (["a/b/c/d/e/1.jpg", "a/b/c/d/f/1.jpg"], r"1 class folders \(a\)"),
        (["x/a/1.jpg"], r"1 class folders \(x\)"),
    ],
)
def test_not_entered(paths, words, tmp_path):
    write_images(tmp_path, *paths)
    with pytest.raises(DataError, match=words):
        opened("folder", tmp_path)


def test_lists_beside_one_folder_of_images(tmp_path):
    """The class folders in images/ are not the data: the lists split them."""
    write_images(tmp_path, "images/a/1.jpg", "images/b/1.jpg")
    list_of(tmp_path, "train_list.txt", ["images/a/1.jpg 0", "images/b/1.jpg 1"])
    with pytest.raises(DataError, match="the list train_list.txt; .* --dataset list"):
        opened("folder", tmp_path)


# --- Lists of PaddleClas and PaddleX --------------------------------------------------------------


@pytest.mark.parametrize(
    "file, lines",
    [
        ("label_list.txt", ["0 red fox", "1 owl", "2 cat"]),
        ("labels.txt", ["red fox", "owl", "cat", ""]),  # PaddleX
        ("label.txt", ["2\tcat", "0\tred fox", "1\towl"]),
        ("animals3_label_list.txt", ["0,red fox", "1,owl", "2,cat"]),
        ("labels.txt", ["red fox,0", "owl,1", "cat,2"]),
        ("labels.txt", ["red fox,owl,cat"]),
    ],
)
def test_paddleclas_lists(file, lines, tmp_path):
    write_images(tmp_path / "in", "images/1.jpg", "images/a b 2.jpg", "images/3.jpg")
    list_of(tmp_path / "in", "train_list.txt", ["images/1.jpg 0", "images/a b 2.jpg 2"])
    list_of(tmp_path / "in", "val_list.txt", ["images/3.jpg\t1"])
    list_of(tmp_path / "in", "test_list.txt", ["images/1.jpg 1"])
    list_of(tmp_path / "in", file, lines)
    data = opened("list", tmp_path)  # the only folder in it is entered
    assert data.train.classes == ["red fox", "owl", "cat"]
    assert names_of(data.train) == [("images/1.jpg", "red fox"), ("images/a b 2.jpg", "cat")]
    assert names_of(data.val) == [("images/3.jpg", "owl")]
    assert names_of(data.test) == [("images/1.jpg", "owl")]
    assert data.train.image(1).getpixel((0, 0)) == pytest.approx((1, 0, 7), abs=2)
    assert f"{tmp_path / 'in' / file} names 3 classes: red fox, owl, cat" in data.notes


def test_numbers_of_the_label_list_may_start_at_one(tmp_path):
    list_of(tmp_path, "train_list.txt", ["1.jpg 1", "2.jpg 102"])
    list_of(tmp_path, "val_list.txt", ["3.jpg 7"])
    list_of(tmp_path, "label_list.txt", ["102 rose", "1 crane", "7 crane"])
    data = opened("list", tmp_path)
    assert data.train.classes == ["crane (1)", "crane (7)", "rose"]
    assert (data.train.labels.tolist(), data.val.labels.tolist()) == ([0, 2], [1])


@pytest.mark.parametrize(
    "train, names, words",
    [
        (["1.jpg 0", "2.jpg 5"], ["0 cat", "1 dog"], "train_list.txt:2: the class is 5, but .*"
         "label_list.txt has no line for it; it names 2 classes, 0 to 1"),
        (["1.jpg 0", "2.jpg 1"], ["0 cat", "0 dog"], "2 lines have the number 0"),
        (["1.jpg 0", "2.jpg 1"], ["cat", "", "dog"], "label_list.txt:2: is empty"),
        (["1.jpg 0", "2.jpg 1"], [""], "has no line for it; it names 0 classes"),
    ],
)  # fmt: skip
def test_label_list_faults(train, names, words, tmp_path):
    list_of(tmp_path, "train_list.txt", train)
    list_of(tmp_path, "label_list.txt", names)
    with pytest.raises(DataError, match=words):
        opened("list", tmp_path)


@pytest.mark.parametrize(
    "lines, labels, classes",
    [
        (["1.jpg 3", "2.jpg 4"], ["0", "1"], ["0", "1"]),  # labels.txt is a list of images
        (["3 objects", "4 objects"], ["0", "1"], ["3 objects", "4 objects"]),
        (["owl", "cat"], ["cat", "owl"], ["cat", "owl"]),  # the labels are names already
    ],
)
def test_what_labels_txt_may_also_be(lines, labels, classes, tmp_path):
    list_of(tmp_path, "labels.txt", lines)
    list_of(tmp_path, "train.csv", [f"{k}.jpg,{label}" for k, label in enumerate(labels * 2)])
    assert opened("list", tmp_path).train.classes == classes


# --- Lists from Windows --------------------------------------------------------------------------


def test_a_csv_from_windows(tmp_path):
    """Backslashes, a mark of UTF-8, CRLF, a header and quoted commas."""
    write_images(tmp_path, "images/5.jpg", "images/a, b/6.jpg", "images\\7.jpg")
    rows = ["file,label", r"images\5.jpg,cat", '"images\\a, b\\6.jpg",dog', r"images\7.jpg,cat"]
    (tmp_path / "train.csv").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    list_of(tmp_path, "val.csv", ["images/5.jpg,cat"])
    data = opened("list", tmp_path)
    assert names_of(data.train) == [
        ("images/5.jpg", "cat"),
        ("images/a, b/6.jpg", "dog"),
        ("images\\7.jpg", "cat"),  # there is such a file
    ]
    assert data.train.image(1).size == (6, 5)
    assert f"{tmp_path / 'train.csv'}: 2 paths have \\, which was read as /" in data.notes
    assert "1 images are in the lists" not in " ".join(data.notes)


def test_backslashes_do_not_change_what_is_held_out(tmp_path):
    for name, sign in (("unix", "/"), ("windows", "\\")):
        write_images(tmp_path / name, *(f"p/{k}.jpg" for k in range(40)))
        list_of(tmp_path / name, "train.csv", [f"p{sign}{k}.jpg,{k % 2}" for k in range(40)])
    unix, windows = (opened("list", tmp_path / name) for name in ("unix", "windows"))
    assert unix.val.paths == windows.val.paths and len(unix.val) == 4


@pytest.mark.parametrize("path", [r"C:\images\5.jpg", "d:/images/5.jpg", r"\\server\images\5.jpg"])
def test_a_drive_of_windows(path, tmp_path):
    list_of(tmp_path, "train.csv", ["1.jpg,a", f"{path},b"])
    with pytest.raises(DataError, match=r"train.csv:2: .* is a path on a drive of Windows"):
        opened("list", tmp_path)


# --- Encodings -----------------------------------------------------------------------------------

CHINESE = ["合格", "不合格", "划痕", "猫"]


@pytest.mark.parametrize(
    "encoding, names, said",
    [
        ("gbk", CHINESE, "gb18030"),
        ("gb18030", CHINESE, "gb18030"),
        ("utf-16", CHINESE, "utf-16"),  # Excel: Unicode text
        ("utf-16-le", CHINESE, "utf-16-le"),
        ("latin-1", ["Löwe", "Käfer", "garçon"], "cp1252"),
        ("cp1252", ["chat – gris", "éléphant"], "cp1252"),
        ("cp1251", ["кошка", "собака", "лев"], "cp1251"),
        ("cp932", ["猫", "ひまわり"], "cp932"),
        ("utf-8", CHINESE, None),
        ("utf-8-sig", CHINESE, None),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_encodings(suffix, encoding, names, said, tmp_path):
    names = [name.replace(" ", "") for name in names]
    text = "".join(f"p/{k}.jpg{',' if suffix == 'csv' else ' '}{names[k % len(names)]}\r\n"
                   for k in range(60))  # fmt: skip
    (tmp_path / f"train.{suffix}").write_bytes(text.encode(encoding))
    data = opened("list", tmp_path)
    assert data.train.classes == sorted(names)
    notes = [note for note in data.notes if "not UTF-8" in note]
    assert len(notes) == (said is not None)
    if said:  # a wrong guess would be seen
        assert f"train.{suffix}: not UTF-8, read as {said};" in notes[0]
        assert ", ".join(sorted(names)[:4]) in notes[0] and "encoding:" in notes[0]


def test_a_label_list_in_gbk(tmp_path):
    list_of(tmp_path, "train_list.txt", ["1.jpg 0", "2.jpg 1"])
    list_of(tmp_path, "val_list.txt", ["3.jpg 0"])
    (tmp_path / "label_list.txt").write_bytes("0 苹果\n1 香蕉\n".encode("gbk"))
    data = opened("list", tmp_path)
    assert data.train.classes == ["苹果", "香蕉"]
    assert (
        "label_list.txt: not UTF-8, read as gb18030; the first classes are 苹果, 香蕉"
        in " ".join(data.notes)
    )


def test_the_encoding_of_a_description_decides(tmp_path):
    """Korean looks like Chinese; the note shows it, and ``encoding:`` cures it."""
    names = ["개", "고양이"]
    text = "".join(f"{k}.jpg,{names[k % 2]}\n" for k in range(20))
    (tmp_path / "train.csv").write_bytes(text.encode("cp949"))
    assert "read as gb18030; the first classes are 俺, 绊剧捞" in opened("list", tmp_path).notes[1]
    data = registry.open_dataset(described(tmp_path, encoding="cp949"))
    assert data.train.classes == names and "read as" not in " ".join(data.notes)
    (tmp_path / "names.txt").write_bytes("고양이\n개\n".encode("cp949"))
    data = registry.open_dataset(described(tmp_path, encoding="cp949", classes="names.txt"))
    assert data.train.classes == ["고양이", "개"]
    with pytest.raises(DataError, match="train.csv: is not in the given encoding utf-8"):
        registry.open_dataset(described(tmp_path, encoding="utf-8"))
    with pytest.raises(ConfigError, match="encoding: is 'base64', expected a name such as utf-8"):
        registry.open_dataset(described(tmp_path, encoding="base64"))


def test_a_workbook_is_no_list(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    with pytest.raises(DataError, match="Excel workbook .* save it as 'CSV UTF-8'"):
        opened("list", tmp_path)


# --- ~ and $VARIABLES ----------------------------------------------------------------------------


def test_home_and_variables_in_files_and_calls(tmp_path, monkeypatch):
    write_images(tmp_path / "home/photos", *FLOWERS)
    list_of(tmp_path / "home/photos", "train.csv", ["daisy/1.jpg,a", "roses/1.jpg,b"])
    list_of(tmp_path / "home", "val.csv", ["daisy/2.jpg,a"])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PHOTOS", str(tmp_path / "home/photos"))
    (tmp_path / "x").mkdir()
    for written in ("~/photos", "$PHOTOS", "${PHOTOS}", "$HOME/photos"):
        assert len(opened("folder", written).train) == 36
        path = described(tmp_path / "x", datadir=written, val="~/val.csv")
        assert registry.open_dataset(path).val.paths == ["daisy/2.jpg"]
    with pytest.raises(MissingFileError, match=r"\$NOWHERE/x: no such folder"):
        opened("folder", "$NOWHERE/x")


def test_home_and_variables_in_flags(tmp_path, monkeypatch):
    """Quoted flags, which the shell leaves as they are, and a file of settings."""
    write_images(tmp_path / "photos", *FLOWERS)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    list_of(tmp_path, "settings.yaml", ["datadir: ~/photos", "logdir: $RUNS/pets"])
    words = ["--model", "R14x0.5", "--from_scratch", "--dataset", "folder"]
    for more in (
        ["--config", "~/settings.yaml"],
        ["--datadir", "$HOME/photos", "--logdir", "${RUNS}/pets"],
    ):
        found = parsing.parse([*words, *more], "train", registry.find)[0]
        assert (found.datadir, found.logdir) == (f"{tmp_path}/photos", f"{tmp_path}/runs/pets")
    more = ["--datadir", "~/photos", "--bit_pretrained_dir", "~/models", "--resume", "$RUNS/1"]
    found = parsing.parse([*words, *more], "train", registry.find)[0]
    assert found.bit_pretrained_dir == f"{tmp_path}/models" and found.resume == f"{tmp_path}/runs/1"
    flags = predict.parser().parse_args(["~/a.jpg", "http://x/$RUNS", "--model", "$RUNS/pets"])
    assert flags.images == [f"{tmp_path}/a.jpg", "http://x/$RUNS"]
    assert flags.model == f"{tmp_path}/runs/pets"
    flags = evaluate.parser().parse_args(
        ["--model", "R", "--dataset", "~/d.yaml", "--datadir", "$NOWHERE", "--output", "~/out"]
    )
    assert (flags.dataset, flags.output) == (f"{tmp_path}/d.yaml", f"{tmp_path}/out")
    assert flags.datadir == "$NOWHERE"
    assert arguments.data_set("~/photos", None) == ("folder", f"{tmp_path}/photos")


def test_a_folder_that_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "$HOME", *FLOWERS)
    assert len(opened("folder", "$HOME").train) == 36


# --- TensorFlow's flowers ------------------------------------------------------------------------


def archive_of_flowers():
    """The published archive's layout, with 20 images of each class."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in ("LICENSE.txt", *(f"{c}/{k}.jpg" for c in tf_flowers.CLASSES
                                      for k in range(20))):  # fmt: skip
            content = io.BytesIO(b"CC-BY")
            if name.endswith("jpg"):
                Image.new("RGB", (32, 24), (len(name), 0, 0)).save(content, "JPEG")
            info = tarfile.TarInfo(f"flower_photos/{name}")
            info.size = len(content.getvalue())
            tar.addfile(info, io.BytesIO(content.getvalue()))
    return stream.getvalue()


def test_tf_flowers_by_name(tmp_path, monkeypatch):
    content = archive_of_flowers()
    server = Server({"/flower_photos.tgz": content})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tf_flowers, "URL", f"{server.address}/")
    with pytest.raises(DownloadError, match="has .* bytes, expected 228,813,984"):
        registry.open_dataset("tf_flowers")
    expected = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(tf_flowers, "ARCHIVE", tf_flowers.ARCHIVE._replace(expected=expected))
    server.requests.clear()
    first = registry.open_dataset("tf_flowers")
    assert [path for path, _ in server.requests] == ["/flower_photos.tgz"]
    server.shutdown()
    server.server_close()
    second = registry.open_dataset("tf_flowers")
    assert first.train.classes == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
    assert (len(first.train), len(first.val)) == (90, 10) and first.val.image(0).size == (32, 24)
    folder = tmp_path / "mine/flower_photos"
    shutil.copytree(tmp_path / "cache/tf_flowers/flower_photos", folder)
    mine = [registry.open_dataset("tf_flowers", str(path)) for path in (folder, folder.parent)]
    own = opened("folder", folder.parent)  # as the archive unpacks
    for data in (second, *mine, own):
        assert [data.train.paths, data.val.paths] == [first.train.paths, first.val.paths]
    known = registry.known(registry.find("tf_flowers"))
    assert (known.images, known.classes, known.resolution) == (3303, 5, "large")


def test_tf_flowers_elsewhere(tmp_path):
    with pytest.raises(MissingFileError, match="missing flower_photos.tgz .*leave --datadir out"):
        opened("tf_flowers", tmp_path)
