"""Steps of training for which memory runs out in many places; test_fitting asks what came of it."""

import gc
import hashlib
import json
import resource
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from bit_paddle.config.settings import Settings
from bit_paddle.data.loader import MicroBatch
from bit_paddle.inference.parts import Parts
from bit_paddle.models import cost, weights
from bit_paddle.models.native import plain
from bit_paddle.runs import logbook
from bit_paddle.system import processes
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import distributed, start, step
from bit_paddle.training import memory as training_memory
from bit_paddle.training.classification import validation
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.training.classification.task import loss_of
from bit_paddle.training.memory import find_split
from bit_paddle.training.optimizer import Momentum

out, image_folder, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
MODES = {"off": ("off", "off"), "unit": ("unit", "off"), "bf16": ("off", "bf16")}
CROP, FEW, SOME, MANY = 96, 4, 8, 32
PASS = 10 * 2**20  # bytes beside the weights' that are left for a pass without gradients
INFINITY = resource.RLIM_INFINITY
processes.end_with_parent()
distributed.join()
rank, size = processes.rank(), processes.world_size()
told = {"fits": {}, "update": {}}
settings = Settings(
    "R14x0.5", "folder", image_folder, from_scratch=True, batch=32, precrop=CROP, crop=CROP
)
plan = make_plan(settings)
task = plan.task(logbook.Silent(), Interrupt())


def address_space():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))


def limit(room):
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + int(room), INFINITY))


@contextmanager
def limited(room=None):
    "Have no more than ``room`` bytes beside what is there, and at the end any again."
    if room is not None:
        limit(room)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (INFINITY, INFINITY))


def state(model, optimizer):
    "Return what must not change: weights and velocities, and how many gradients there are."
    velocities = [one for one in optimizer.velocities() if one is not None]
    arrays = [one.numpy().tobytes() for one in [*model.parameters(), *velocities]]
    gradients = [one for one in model.parameters() if one.grad is not None]
    return hashlib.sha256(b"".join(arrays)).hexdigest(), len(velocities), len(gradients)


class Starved(Momentum):
    "Takes memory away before a step, if it is told how much to leave."

    room, garbage = None, 0  # bytes that are left; and bytes that only a collector would free

    def reserve(self):
        room, self.room = self.room, None
        if room is not None:
            gc.collect()  # what earlier failures have left
            circle = [np.ones(self.garbage, np.uint8)]
            circle.append(circle)
            del circle
            limit(room)
        super().reserve()


def new(mode):
    model = weights.create_model("R14x0.5", 3, pretrained=False, seed=0)
    model.recompute, model.amp = MODES[mode]
    optimizer = Starved(0.01, 0.9, model.parameters())
    return model, optimizer, distributed.GradientSums(model.parameters())


def an_image(model):
    return cost.activations(model.architecture, CROP, model.recompute, model.amp != "off")


def room_for(model, images):
    return images * an_image(model) + sum(cost.training_memory(model.architecture, 3).values())


def disturbed(model, optimizer, call):
    "Return what ``call`` returns or raises, the state before and after, and the memory lost."
    before, at_first = state(model, optimizer), address_space()
    try:
        result = call()
    except BaseException as error:  # Paddle knows many
        result = type(error).__name__
    return result, before, state(model, optimizer), (address_space() - at_first) / an_image(model)


def update(model, optimizer, sums, where=None):
    """Make an update in two parts; from the part ``where`` on the last process gets no more memory.

    At "step" and "freed" that is before the optimizer's step; "freed" has garbage that would do.
    """
    optimizer.room = 2**19 if where in ("step", "freed") and rank == size - 1 else None
    optimizer.garbage = 2**27 if where == "freed" else 0
    random = np.random.default_rng(rank)
    pixels = random.integers(0, 256, (8, 3, CROP, CROP)).astype(np.uint8)
    labels = random.integers(0, 3, 8)
    parts = (MicroBatch(pixels[k : k + 4], labels[k : k + 4], labels) for k in (0, 4))

    def checked(parts):
        for place, part in enumerate([*parts, None]):
            if place == where and rank == size - 1:
                limit(2**19)
            if part is not None:
                yield part

    with limited():
        loss = partial(loss_of, images=8 * size)
        return step.update(model, optimizer, sums, parts, loss, 0.01, checked=checked)


def try_to_fit(mode):
    model, optimizer, sums = new(mode)
    found = told["fits"].setdefault(mode, {})

    def fits(images, moved=(), loss=task.trial_loss):
        return training_memory.fits(model, partial(loss, model, images), True, moved)

    def ends_at(block, time):
        calls, norm = [], next(iter(block)).a.norm

        def count(*_):
            calls.append(0)
            if len(calls) == time:
                limit(2**19)

        hook = norm.register_forward_pre_hook(count)
        with limited():
            answer = fits(SOME)
        hook.remove()
        return answer

    def to_end_on_the_way_back(model, images):
        loss = task.trial_loss(model, images)
        limit(2**19)
        return loss

    def way_back():
        with limited():
            return fits(SOME, loss=to_end_on_the_way_back)

    def in_turn(moved):
        with limited(room_for(model, 2 * SOME)):
            return [fits(images, moved) for images in (FEW, MANY, MANY, FEW)]

    # In a GroupNorm, and with --recompute in a unit; the way there, and at the end of that back.
    found["way there"] = disturbed(model, optimizer, lambda: ends_at(model.block2, 1))
    found["way back"] = disturbed(model, optimizer, way_back)
    if mode == "unit":
        found["end of the way back"] = disturbed(model, optimizer, lambda: ends_at(model.block1, 2))
    if mode == "off":
        found["first"] = disturbed(model, optimizer, lambda: in_turn(model.parameters()))
        update(model, optimizer, sums)
        found["later"] = disturbed(model, optimizer, lambda: in_turn([]))
        with limited(room_for(model, 2 * SOME)):
            found["moved"] = [fits(FEW, 20 * model.parameters()), fits(FEW)]


def disturb_updates(mode):
    one, other = new(mode), new(mode)
    found = told["update"].setdefault(mode, {})
    for velocities in (False, True) if mode == "off" and size == 1 else (False,):
        for where in (0, 1, 2, "step"):
            call = partial(update, *one, where)
            found[f"{where}, {velocities}"] = disturbed(*one[:2], call)
        losses = update(*one), update(*other)
        found[f"then, {velocities}"] = losses, state(*one[:2]), state(*other[:2])
        if size == 1:
            gc.disable()
            losses = update(*one, "freed"), update(*other)
            gc.enable()
            found[f"then freed, {velocities}"] = losses, state(*one[:2]), state(*other[:2])


def evaluate():
    "Measure few and many images: with all the memory, with less, and with almost none."
    model, random = new("off")[0], np.random.default_rng(0)
    weight = model.head.weight
    weight.set_value(random.normal(0, 1, weight.shape).astype(np.float32))
    pixels = random.integers(0, 256, (MANY, 3, CROP, CROP)).astype(np.uint8)
    labels, lines = random.integers(0, 3, MANY), []
    batches = [MicroBatch(pixels, labels, labels)] * 2
    parts = Parts(lines.append)
    whole = validation.evaluate(model, batches).sums()
    with limited(room_for(model, 0) + PASS):
        smaller = validation.evaluate(model, batches, parts=parts).sums()
    try:
        with limited(2**16):
            nothing = validation.evaluate(model, batches, parts=parts).sums()
    except MemoryError as error:
        nothing = type(error).__name__
    again = validation.evaluate(model, batches, parts=parts).sums()
    sums = [list(map(float, found)) for found in (whole, smaller, again)]
    told["evaluate"] = *sums, nothing, lines


def begin():
    lines = []

    class Log(logbook.Silent):
        def say(self, text, console=True):
            lines.append(text)

    def boundless(*_):  # asked for right before the first try
        memory = sum(cost.training_memory(plan.architecture, 3).values())
        limit(memory + 2 * SOME * cost.activations(plan.architecture, CROP))
        return 2**50

    training_memory.activation_memory = boundless
    try:
        with limited():
            begun = start.begin(plan, task, "off", plain, Log())
            model, sums, known = begun.model, begun.sums, begun.known_split
            split = find_split(plan, task, "gpu", known, model, sums.own, Log())
    except Exception as error:
        split = type(error).__name__
    told["begin"] = split, lines


for mode in MODES if size == 1 else ["off"]:
    update(*new(mode))  # what is loaded or allocated once
    crumbs = [bytes(2**15) for _ in range(1000)]
    del crumbs[::2]  # room for small things alone, such as the texts of errors
    if size == 1:
        try_to_fit(mode)
    disturb_updates(mode)
if size == 1:
    evaluate()
    begin()
(out / f"{name}.{rank}.json").write_text(json.dumps(told))
