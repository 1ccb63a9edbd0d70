"""--rule distill: loss, optimizer and schedule against PyTorch; whole runs; what is refused."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import paddle
import pytest
from conftest import GOLDEN, ROOT
from helpers.commands import run
from helpers.runs import assert_same, lines_of, state_of
from paddle import nn
from PIL import Image

from bit_paddle import create_model, save_npz
from bit_paddle.config import parsing
from bit_paddle.config.settings import Settings
from bit_paddle.data.readers import registry
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError, DataError
from bit_paddle.inference import card
from bit_paddle.inference.examine import analyze
from bit_paddle.inference.trained import find_trained
from bit_paddle.models import cost, losses
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.network import Network
from bit_paddle.recipes import distill
from bit_paddle.recipes.hyperrule import Resolution
from bit_paddle.recipes.recipe import RECIPES
from bit_paddle.runs.history import read
from bit_paddle.runs.logbook import Silent
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import distributed, step
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.training.optimizer import Adam

_spec = importlib.util.spec_from_file_location("golden", GOLDEN / "make_distillation.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)

CLASSES = ["amber", "blue", "coral"]


@pytest.fixture
def float64():
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype(before)


# --- Against PyTorch ------------------------------------------------------------------------------


class Small(Network):
    """The network of the golden: two layers with tanh between them."""

    def __init__(self, weights):
        super().__init__()
        for name, one in zip(("kernel1", "bias1", "kernel2", "bias2"), weights):
            start = nn.initializer.Assign(one)
            self.add_parameter(name, self.create_parameter(one.shape, default_initializer=start))

    def forward(self, x):
        return paddle.tanh(x @ self.kernel1 + self.bias1) @ self.kernel2 + self.bias2


def test_ten_steps_are_pytorchs(float64):
    """Loss, gradients' norm, clipping, Adam with decoupled decay, warm-up, cosine and MixUp."""
    golden = np.load(GOLDEN / "distillation.npz")
    weights, taught, steps = make.numbers()
    student, teacher = Small(weights), Small(taught)
    parameters = list(student.parameters())
    optimizer = Adam(make.BASE_LR, parameters, weight_decay=make.DECAY)
    sums = distributed.GradientSums(parameters, clip_norm=make.LARGEST)
    schedule, norms = distill.Cosine(make.WARMUP, (), make.STEPS), []
    clip = sums.clip

    def noted():
        norms.append(np.sqrt(sum(float((one.grad**2).sum()) for one in parameters)))
        clip()

    def loss_of(model, part):
        images, lam, partners = part
        own, others = paddle.to_tensor(images), paddle.to_tensor(images[partners])
        views = losses.mix(own, others, lam)
        return losses.divergence(model(views), teacher(views).detach()).mean()

    sums.clip, found, rates = noted, [], []
    for at, part in enumerate(steps):
        rates.append(schedule.learning_rate(at, make.BASE_LR))
        found.append(step.update(student, optimizer, sums, [part], loss_of, rates[-1]))
    assert rates == pytest.approx(golden["rates"], rel=1e-12)
    assert found == pytest.approx(golden["losses"], rel=1e-9)
    assert norms == pytest.approx(golden["norms"], rel=1e-9)
    state = optimizer.state()
    for index, (name, one) in enumerate(student.named_parameters()):
        for kind, tensor in (
            ("weight", one),
            ("mean", state["mean"][index]),
            ("variance", state["variance"][index]),
        ):
            expected = golden[f"{kind}/{name}"]
            assert np.abs(tensor.numpy() - expected).max() < 1e-9 * np.abs(expected).max(), name


def test_the_divergence_by_its_formula(dtype):
    random = np.random.default_rng(0)
    given, wanted = 3 * random.normal(size=(2, 5, 7)).astype(dtype)
    p, q = (np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in (wanted, given))
    bar = {"float64": 1e-13, "float32": 1e-5}[dtype]
    logits = paddle.to_tensor(given, stop_gradient=False)
    found = losses.divergence(logits, paddle.to_tensor(wanted))
    found.sum().backward()
    assert np.abs(found.numpy() - (p * np.log(p / q)).sum(axis=1)).max() < bar
    assert np.abs(logits.grad.numpy() - (q - p)).max() < bar
    far = paddle.to_tensor(np.array([[0.0, 2000.0]], dtype))
    assert losses.divergence(-far, far).item() == pytest.approx(2000)


def test_the_schedule():
    found = distill.schedule(1_281_167, 4096)
    assert (found.warmup, found.steps) == (5000, 1200 * 313)
    middle = 5000 + (found.steps - 5000) // 2
    rates = [found.learning_rate(at, 0.03) for at in (0, 2500, 5000, middle, found.steps)]
    assert rates == pytest.approx([0, 0.015, 0.03, 0.015, 0], abs=1e-9)
    short = found.scaled(100)
    assert type(short) is distill.Cosine and (short.warmup, short.steps) == (1, 100)
    assert distill.schedule(50_000, 4096, epochs=9).warmup == 23  # a fifth
    assert dataclasses.replace(short, warmup=200).learning_rate(100, 1.0) == 0.5


# --- The same view --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A network with three outputs that differ between images, as `train` would have saved it."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.npz"
    return saved(path, {"classes": CLASSES, "crop": 32, "resize": 36})


def saved(path, notes, classes=3):
    model, random = create_model("R14x0.5", classes, seed=5), np.random.default_rng(0)
    for parameter in model.head.parameters() if classes else ():
        noise = random.standard_normal(parameter.shape)
        parameter.set_value(noise.astype(str(parameter.dtype).rpartition(".")[2]))
    save_npz(model, path, notes)
    return path


def settings_of(teacher, folder, **changes):
    values = {"model": "R14x0.5", "from_scratch": True, "dataset": "folder", "datadir": str(folder),
              "rule": "distill", "batch": 8, "steps": 6, "base_lr": 0.01,
              "weight_decay": 1e-3, "workers": 0}  # fmt: skip
    return Settings(**{**values, "teacher": teacher and str(teacher), **changes})


def task_of(teacher, folder, **changes):
    return make_plan(settings_of(teacher, folder, **changes)).task(Silent(), Interrupt())


def test_both_see_the_same_blend(teacher, image_folder, float64):
    """One of the steps has a lambda below a half, which is not exchanged with 1 - lambda."""
    task, seen, lambdas = task_of(teacher, image_folder), [], []
    student = task.initial_network()
    student.head.weight.set_value(np.random.default_rng(1).standard_normal((1024, 3)))
    network = task._teacher.beside(student)
    for model in (student, network.network):
        model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    batches = task.batches(0)
    for _ in range(4):
        batch = next(batches)
        loss_of, parts = task.loss_of(batch), list(batch.micro_batches(2))
        seen.clear()
        total = sum(float(loss_of(student, part)) for part in parts)
        views = [part.images * batch.lam + part.partner_images * (1 - batch.lam) for part in parts]
        for view, (first, second) in zip(views, (seen[:2], seen[2:])):
            assert np.array_equal(first, second)
            assert np.abs(first - (view / 127.5 - 1)).max() < 1e-12
        every = paddle.to_tensor(np.concatenate(views) / 127.5 - 1)
        expected = losses.divergence(student(every), network(every)).mean()
        assert total == pytest.approx(float(expected), rel=1e-9) and total > 0.1
        lambdas.append(batch.lam)
    batches.close()
    assert min(lambdas) < 0.5 < max(lambdas)
    assert all(one.grad is None for one in network.network.parameters())
    assert not network.network.training


def test_a_teacher_with_larger_eyes(teacher, image_folder, float64):
    """It sees the same view, enlarged."""
    task, seen = task_of(teacher, image_folder, teacher_crop=64), []
    student = task.initial_network()
    network = task._teacher.beside(student)
    network.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    view = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32))
    network(paddle.to_tensor(view))
    (large,) = seen
    assert large.shape == (2, 3, 64, 64)  # each pixel is 3/4, 1/4 of the two nearest, per axis
    line = 0.75 * view[0, 0, 5, 7] + 0.25 * view[0, 0, 5, 6], view[0, 0, 4, 7], view[0, 0, 4, 6]
    expected = 0.75 * line[0] + 0.25 * (0.75 * line[1] + 0.25 * line[2])
    assert large[0, 0, 10, 14] == pytest.approx(expected, rel=1e-12)


# --- The same result however it is computed -------------------------------------------------------


def test_the_split_of_a_batch_changes_nothing(teacher, image_folder, float64):
    weights = {}
    for split in (1, 2, 4):
        task = task_of(teacher, image_folder)
        student = task.initial_network()
        optimizer = Adam(0.01, student.parameters(), weight_decay=1e-3)
        sums = distributed.GradientSums(student.parameters(), clip_norm=0.1)
        batches = task.batches(0)
        for _ in range(4):
            batch = next(batches)
            parts = batch.micro_batches(split)
            step.update(student, optimizer, sums, parts, task.loss_of(batch), 0.01)
        batches.close()
        weights[split] = [one.numpy() for one in student.parameters()]
    for split in (2, 4):
        for one, other in zip(weights[1], weights[split]):
            assert np.abs(one - other).max() < 1e-9 * max(1e-3, np.abs(one).max())


@pytest.mark.slow
def test_a_stop_and_two_processes_give_the_same(teacher, image_folder, tmp_path):
    words = ["--model", "R14x0.5", "--from_scratch", "--dataset", "folder", "--datadir",
             image_folder, "--rule", "distill", "--teacher", teacher, "--batch", 8, "--steps", 6,
             "--base_lr", 0.01, "--logdir", tmp_path, "--device", "cpu"]  # fmt: skip
    for name, more in (
        ("one", ()),
        ("two", ("--nproc", 2, "--shard")),
        ("cut", ("--save_every", 3, "--keep", 9)),
    ):
        done = run("train", *words, "--name", name, *more)
        assert done.returncode == 0, done.stderr
    whole = state_of(tmp_path / "one")
    assert sum("bit_paddle/variance" in key for key in whole[0]) > 20
    folder = tmp_path / "cut"  # as if it had been killed after step 3
    for path in (folder / "checkpoints").glob("*.npz"):
        if path.name != "step-00000003.npz":
            path.unlink()
    for name in ("result.json", "model.npz"):
        (folder / name).unlink()
    changed = tmp_path / "teacher.npz"
    saved(changed, {"classes": CLASSES, "crop": 32, "resize": 40})
    done = run("train", *words, "--name", "cut", "--save_every", 3, "--teacher", changed)
    assert done.returncode == 2 and "teacher: " in done.stderr
    again = shutil.copy(teacher, tmp_path / "elsewhere.npz")  # the same teacher, in another place
    done = run("train", *words, "--name", "cut", "--save_every", 3, "--teacher", again)
    assert done.returncode == 0 and "resumes after step 3" in done.stdout, done.stderr
    assert_same(state_of(folder), whole)
    arrays, other = whole[0], state_of(tmp_path / "two")[0]
    for key, one in arrays.items():
        bar = 1e-3 * max(1e-3, np.abs(one).max())
        assert np.abs(one - other[key]).max() < bar, key
    log = (tmp_path / "one" / "train.log").read_text()
    for text in ("KL(teacher || student) at temperature 1", "Adam, betas 0.9 and 0.999",
                 "then a cosine to 0", "36 -> 32, the teacher's", "Beta(1, 1)"):  # fmt: skip
        assert text in log
    assert "agreement" not in log  # the labels are the teacher's classes
    trained = find_trained(str(tmp_path / "one" / "model.npz"))
    assert trained.classes == CLASSES and trained.loss == "softmax"
    done = run("train", *words, "--name", "cut", "--force", "--rule", "upstream", "--teacher",
               "none", "--steps", 9)  # fmt: skip
    assert done.returncode == 2 and "state of another optimizer" in done.stderr
    assert not list((folder / "checkpoints").glob("*.damaged"))


# --- Without labels -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """24 images, half of them in folders whose names mean nothing."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for month in ("may", "june"):
        (root / "2019" / month).mkdir(parents=True)
    for k in range(24):
        place = root / "2019" / "may" if k % 2 else root
        pixels = random.integers(0, 256, (40, 44, 3)) // (1 + k % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{k}.png")
    return root


def test_a_run_without_labels(teacher, pictures, tmp_path):
    """The first validation is by the teacher's classes: the zero head agrees by chance."""
    done = run("train", "--model", "R14x0.5", "--from_scratch", "--dataset", "unlabelled",
               "--datadir", pictures, "--rule", "distill", "--teacher", teacher, "--batch", 8,
               "--val_fraction", 0.5, "--epochs", 2, "--base_lr", 0.01, "--logdir",
               tmp_path, "--name", "run", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "train.log").read_text()
    assert "12 of 24 images are held out" in log and "agreement with the teacher: top-1" in log
    assert "validation measures the agreement" in log and "(2 epochs)" in log
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["agreement"] == result["top1"] and result["images"] == 12
    assert lines_of(tmp_path / "run", "train")[0]["loss"] > 0
    assert find_trained(str(tmp_path / "run" / "model.npz")).classes == CLASSES
    facts = card.facts_of(find_trained(str(tmp_path / "run" / "model.npz")))
    assert "teacher.npz: R14x0.5" in dict(facts.recipe)["teacher"] and facts.top1 is None
    done = run("report", tmp_path / "run", "--output", tmp_path / "page.html")
    assert done.returncode == 0 and "was not trained on 1 class" in (
        (tmp_path / "page.html").read_text()
    )


def test_agreement_is_counted_by_the_teachers_answers(teacher, pictures):
    task = task_of(teacher, pictures, dataset="unlabelled", val_fraction=0.5)
    student = create_model(teacher)
    found = task.validate(student, 1, last=False)
    assert found.top1 == 1.0 and found.summary()["agreement"] == 1.0
    assert len(set(task._plan.data.val.labels.tolist())) > 1
    student.head.bias.set_value(np.array([1e6, 0, 0], "float32"))
    share = float((task._plan.data.val.labels == 0).mean())
    assert task.validate(student, 2, last=True).top1 == share < 1
    assert str(found).startswith("agreement with the teacher")


def test_train_and_val_without_labels(pictures, tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        (tmp_path / part).mkdir()
        for path in sorted(pictures.glob("*.png"))[:count]:
            shutil.copy(path, tmp_path / part)
    data = registry.open_dataset("unlabelled", str(tmp_path))
    assert (len(data.train), len(data.val)) == (3, 2)
    with pytest.raises(ConfigError, match="--val_fraction"):
        registry.open_dataset("unlabelled", str(tmp_path), val_fraction=0.5)
    with pytest.raises(DataError, match="expected two or more"):
        registry.open_dataset("unlabelled", str(pictures / "2019" / "june"))


def test_classes_are_paired_by_name(image_folder, tmp_path):
    """Another order of the teacher's outputs; a class that the data do not have."""
    names = ["coral", "dun", "amber", "blue"]
    path = saved(tmp_path / "t.npz", {"classes": names, "crop": 32, "resize": None}, 4)
    plan = make_plan(settings_of(path, image_folder))
    train = plan.data.train
    assert train.classes == names and plan.teacher.fits and plan.model_notes["classes"] == names
    folders = [train.name(k).split("/")[-2] for k in range(len(train))]
    assert [names[label] for label in train.labels] == folders
    assert plan.resolution == Resolution(32, 32)
    done = run("train", "--rule", "distill", "--teacher", path, "--dataset", "folder", "--datadir",
               image_folder, "--model", path, "--steps", 1, "--logdir", tmp_path, "--name", "x",
               "--batch", 8, "--crop", 32, "--precrop", 36, "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (history,) = read(tmp_path / "x")
    found = analyze(history, history.model, 99)  # of a report: labels are paired by name, too
    assert found.confusion.sum(axis=1).tolist() == [5, 0, 5, 5]
    other = saved(tmp_path / "o.npz", {"classes": ["a", "b"], "crop": 48, "resize": None}, 2)
    plan = make_plan(settings_of(other, image_folder, precrop=36, crop=32))
    assert not plan.teacher.fits and plan.data.val.classes == ["a", "b"]
    notes = " ".join(plan.notes())
    assert "was not trained on 3 classes" in notes and "trained at 48 pixels" in notes


# --- Memory ---------------------------------------------------------------------------------------


def test_the_teacher_and_adam_count(teacher, image_folder):
    plan = make_plan(settings_of(teacher, image_folder))
    alone = make_plan(settings_of(None, image_folder, rule="upstream"))
    parts, before = (one.demand.parts(False, 1) for one in (plan, alone))
    assert parts["momentum"] == 2 * before["momentum"]
    network = Architecture.parse("R14x0.5")
    kernels = 4 * network.kernels  # standardized once
    assert parts.pop("teacher") == 4 * network.parameters(3) + kernels
    assert {**parts, "momentum": 0} == {**before, "momentum": 0}
    large = make_plan(settings_of(teacher, image_folder, teacher_crop=256))
    image = large.teacher.activations(32, False)
    assert image == large.demand.activations("off", False) > plan.demand.activations("off", False)
    assert large.estimated_split(8, 3 * image, False) == 3
    assert plan.activation_memory(10**8, False, 1) < alone.activation_memory(10**8, False, 1)
    assert cost.forward_activations(network, 32) < cost.activations(network, 32)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, named",
    [
        ([], "--teacher: is required by --rule distill"),
        (["--teacher", "BiT-Mimi"], "--teacher: unknown model 'BiT-Mimi': did you mean BiT-Mini"),
        (["--teacher", "R50x1"], "--teacher: R50x1 is an architecture"),
        (["--teacher", "BiT-Mini", "--rule", "code"], "--teacher: is for --rule distill only"),
        (["--teacher_crop", "64", "--rule", "upstream"], "--teacher_crop: is for --rule distill"),
        (["--teacher", "BiT-Mini", "--loss", "sigmoid"], "--loss: is sigmoid"),
        (["--teacher", "BiT-Mini", "--balance", "0.5"], "--balance: is 0.5"),
        (["--teacher", "BiT-Mini", "--learn", "head"], "--learn: is head"),
        (["--teacher", "BiT-Mini", "--teacher_crop", "8"], "--teacher_crop: is 8, expected at"),
        (["--teacher", "BiT-Mini", "--steps", "2", "--epochs", "2"], "--epochs and --steps"),
    ],
)
def test_contradictions(words, named, image_folder):
    words = ["--rule", "distill", "--model", "BiT-Mini", "--dataset", "folder", "--datadir",
             str(image_folder), *words]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        parsing.parse(words, "x", registry.find)
    assert named in str(caught.value)


def test_defaults():
    words = ["--model", "R50x1", "--from_scratch", "--dataset", "folder", "--datadir", str(ROOT)]
    words += ["--rule", "distill", "--teacher", "BiT-Mini"]
    found, _ = parsing.parse(words, "x", lambda *a, **b: DataSpec("folder"))
    assert (found.batch, found.epochs) == (4096, 1200)
    assert (found.base_lr, found.weight_decay) == (0.03, 3e-4)
    assert found.optimizer == "adam" and RECIPES["code"].optimizer == "sgd"
    assert found.recipe.mixup_alpha(9) == 1.0


def test_models_that_cannot_teach(image_folder, tmp_path, monkeypatch):
    view = {"crop": 32, "resize": 36}
    faults = {
        "bare": ({**view}, 0, "has no head"),
        "yes-or-no": ({**view, "classes": CLASSES, "settings": {"loss": "sigmoid"}}, 3, "sigmoid"),
    }
    for name, (notes, classes, said) in faults.items():
        path = saved(tmp_path / f"{name}.npz", notes, classes)
        with pytest.raises(ConfigError, match=said):
            make_plan(settings_of(path, image_folder))
    scaled = {"facts": {"preprocessing": {"crop": 32, "mean": [0.4] * 3, "std": [0.2] * 3},
                        "classes": CLASSES, "loss": "softmax"}}  # fmt: skip
    with pytest.raises(ConfigError, match="both must see the same view"):
        make_plan(settings_of(saved(tmp_path / "scaled.npz", scaled), image_folder))
    with pytest.raises(ConfigError, match="sigmoid"):  # known without its file
        make_plan(settings_of("BiT-M-R50x1", image_folder), fetch=False)


def test_labels_are_needed_by_other_rules_and_by_few_shot(teacher, pictures):
    options = {"dataset": "unlabelled", "val_fraction": 0.5}
    with pytest.raises(ConfigError, match="they are for --rule distill"):
        make_plan(settings_of(None, pictures, rule="upstream", **options))
    with pytest.raises(ConfigError, match="--examples_per_class: the images have no labels"):
        make_plan(settings_of(teacher, pictures, examples_per_class=1, **options))


@pytest.mark.parametrize("name, said", [
    ("R152x2_T-R50x1", "R152x2_T_224: R152x2, 1,000 classes; sees the student's views at 224"),
    ("BiT-Mini", "BiT-Mini: R26x0.5, 10 classes; sees the student's views at 64 x 64"),
])  # fmt: skip
def test_recipes_can_be_planned(name, said):
    done = run("plan", "--config", ROOT / "configs" / "distill" / f"{name}.yaml", "--gpus", 32)
    assert done.returncode == 0 and said in done.stdout, done.stderr
    assert "teacher  " in done.stdout
