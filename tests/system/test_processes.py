"""Several processes are one program: started, watched and ended together, and they compute as one.

Parts of this are small commands that are no training at all; the rest trains, in float64.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT, wait_until

from bit_paddle import errors
from bit_paddle.system import environment, processes


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Run lines of Python in some processes; they find the folder ``tmp`` and their ``rank``."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def launch(code, count, grace=60.0):
        monkeypatch.setattr(processes, "GRACE", grace)
        return processes.launch(command_of(code, tmp_path), count)

    return launch


def command_of(code, folder):
    start = f"""
        import json, os, signal, sys, time
        from pathlib import Path
        tmp, rank = Path({str(folder)!r}), int(os.environ["PADDLE_TRAINER_ID"])

        def wait_for(path):
            while not path.exists():
                time.sleep(0.01)

        def leave_a_number():
            (tmp / f"{{rank}}.part").write_text(str(os.getpid()))
            (tmp / f"{{rank}}.part").rename(tmp / f"{{rank}}.pid")

        def wait_for_the_end_of(other):  # which the process that started both has noticed
            wait_for(tmp / f"{{other}}.pid")
            while Path("/proc", (tmp / f"{{other}}.pid").read_text()).exists():
                time.sleep(0.01)
    """
    return [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(code)]


def launcher(code, folder, count, grace=60.0):
    """Start a process that launches: one that may be sent signals."""
    script = (
        f"import sys; from bit_paddle.system import processes; processes.GRACE = {grace}; "
        f"sys.exit(processes.launch({command_of(code, folder)!r}, {count}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pids(folder, count):
    """Return the processes' numbers once all have written them."""
    files = [folder / f"{rank}.pid" for rank in range(count)]
    wait_until(lambda: all(file.exists() for file in files))
    return [int(file.read_text()) for file in files]


def alive(pid):
    """Whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- Places -------------------------------------------------------------------------------------


def test_each_process_is_told_its_place(launch, tmp_path, monkeypatch):
    monkeypatch.setitem(environment._chosen, "MKL_NUM_THREADS", "64")
    monkeypatch.setattr(environment, "_users", {})
    monkeypatch.setenv("MKL_NUM_THREADS", "64")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Paddle does when it is imported
    code = """
        from bit_paddle.system import environment
        from bit_paddle.system import processes
        place = {
            "rank": processes.rank(), "size": processes.world_size(),
            "local": environment.local_processes(), "ours": processes.started_by_us(),
            "cpus": environment.cpu_count(), "environment": dict(os.environ)}
        (tmp / f"{rank}.json").write_text(json.dumps(place))
"""
    assert launch(code, 3) == 0
    places = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    cpus = max(1, environment.cpu_count() // 3)
    assert [place["rank"] for place in places] == [0, 1, 2]
    for place in places:
        assert (place["size"], place["local"], place["ours"], place["cpus"]) == (3, 3, True, cpus)
        assert place["environment"]["MKL_NUM_THREADS"] == str(cpus)
        assert "OMP_NUM_THREADS" not in place["environment"]
    ends = [place["environment"]["PADDLE_CURRENT_ENDPOINT"] for place in places]
    for place in places:
        variables = place["environment"]
        assert variables["PADDLE_TRAINER_ENDPOINTS"].split(",") == ends
        assert variables["PADDLE_MASTER"] == places[0]["environment"]["PADDLE_MASTER"]
    assert len({*ends, places[0]["environment"]["PADDLE_MASTER"]}) == 4
    # This one is alone.
    assert (processes.rank(), processes.world_size()) == (0, 1) and not processes.started_by_us()


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_user_s_own_number_of_threads_stays(name, launch, tmp_path, monkeypatch):
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(environment, "_chosen", {})
    monkeypatch.setattr(environment, "_users", {})
    monkeypatch.setenv(name, "17")
    with monkeypatch.context() as before:
        before.delitem(sys.modules, "paddle", raising=False)
        environment.prepare()
    if name != "OMP_NUM_THREADS":
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Paddle does when it is imported
    code = """
        import bit_paddle
        found = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        (tmp / f"{rank}.json").write_text(json.dumps(found))
    """
    assert launch(code, 2) == 0
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.pop(name) == "17" and list(found.values()) == [None]


# --- Ends ---------------------------------------------------------------------------------------


def test_the_first_one_alone_has_the_terminal(launch, capfd):
    code = "print(f'out {rank}'); print(f'err {rank}', file=sys.stderr)"
    assert launch(code, 2) == 0
    assert capfd.readouterr() == ("out 0\n", "err 0\n")


def test_one_that_fails_ends_all_and_its_message_is_shown_once(launch, tmp_path, capfd):
    code = """
        leave_a_number()
        if rank == 2:
            for other in range(3):
                wait_for(tmp / f"{other}.pid")
            sys.exit(print("the disk is made of cheese", file=sys.stderr) or 3)
        time.sleep(250)
    """
    start = time.monotonic()
    assert launch(code, 3, grace=1.0) == 3
    assert 1 <= time.monotonic() - start < 200  # the others had their time, and no more
    shown = capfd.readouterr().err
    assert shown.count("the disk is made of cheese") == 1
    ranks = pids(tmp_path, 3)
    assert f"(rank 2, pid {ranks[2]})" in shown and "status 3" in shown
    assert not any(map(alive, ranks))


def test_the_others_have_time_to_end_in_good_order(launch, tmp_path):
    code = """
        if rank:
            sys.exit(3)
        time.sleep(0.5)
        (tmp / "saved").touch()
    """
    assert launch(code, 2) == 3
    assert (tmp_path / "saved").exists()


def test_the_first_one_has_the_time_of_a_save(launch, tmp_path, monkeypatch):
    """However long: one that is under way, and the last."""
    code = """
        from bit_paddle.system import processes
        if rank:
            wait_for(tmp / "begun")
            sys.exit(3)
        with processes.saving():
            (tmp / "begun").touch()
            time.sleep(2)
        with processes.saving():
            time.sleep(1)
            (tmp / "saved").touch()
        time.sleep(250)
        (tmp / "more").touch()
    """
    assert launch(code, 2, grace=0.5) == 3
    assert (tmp_path / "saved").exists() and not (tmp_path / "more").exists()
    with processes.saving():  # alone, nobody waits
        pass


@pytest.mark.parametrize("first, status", [(0, 1), (errors.PeerError.exit_status, 1)])
def test_who_is_to_blame_is_told_from_who_has_lost_another(first, status, launch, capfd):
    """Also where that one is the quicker to end."""
    code = f"""
        leave_a_number()
        if rank == 0:
            sys.exit({first})
        wait_for_the_end_of(0)
        sys.exit(print("it was me", file=sys.stderr) or {status})
    """
    assert launch(code, 2) == status
    shown = capfd.readouterr().err
    assert shown.count("it was me") == 1 and "(rank 1, " in shown


def test_a_fault_that_the_first_one_has_told_is_not_told_twice(launch, capfd):
    code = """
        leave_a_number()
        if rank == 1:
            wait_for_the_end_of(0)
        sys.exit(print('oh', file=sys.stderr) or 2)
    """
    assert launch(code, 2) == 2
    assert capfd.readouterr().err == "oh\n"


def test_the_message_of_the_first_to_fail_is_shown_though_the_status_is_that_of_another(
    launch, capfd
):
    code = """
        leave_a_number()
        if rank == 0:
            wait_for_the_end_of(1)
        sys.exit(print(("I suffer", "it was me")[rank], file=sys.stderr) or 1)
    """
    assert launch(code, 2) == 1
    assert "it was me" in capfd.readouterr().err


def test_one_that_is_killed_is_named(launch, capfd):
    code = """
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(250)
    """
    assert launch(code, 2, grace=1.0) == 137
    shown = capfd.readouterr().err
    assert "(rank 1, pid " in shown and "SIGKILL" in shown


def test_a_command_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        processes.launch([str(tmp_path / "nothing")], 2)


# --- Signals ------------------------------------------------------------------------------------

NOTE = """
    from bit_paddle.system.signals import Interrupt
    with Interrupt() as stop:
        leave_a_number()
        while not stop.signal:
            time.sleep(0.01)
        (tmp / f"{rank}.signal").write_text(stop.signal.name)
    sys.exit(stop.exit_status)
"""


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_all(number, status, tmp_path):
    process = launcher(NOTE, tmp_path, 2)
    pids(tmp_path, 2)
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == status
    assert [(tmp_path / f"{rank}.signal").read_text() for rank in range(2)] == [number.name] * 2


def test_one_that_does_not_heed_a_signal_does_not_keep_the_others_waiting(tmp_path):
    """One that hangs, as it waits for a process that has gone."""
    code = f"""
        if rank == 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            leave_a_number()
            time.sleep(250)
        {textwrap.indent(textwrap.dedent(NOTE), " " * 8).lstrip()}
    """
    process = launcher(code, tmp_path, 2, grace=1.0)
    ranks = pids(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=200)
        assert process.returncode == 143 and not any(map(alive, ranks))
    finally:
        process.kill()
        process.communicate()
        for pid in filter(alive, ranks):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("ending", ["killed", "twice Ctrl-C"])
def test_no_process_outlives_the_one_that_started_it(ending, tmp_path):
    code = """
        from bit_paddle.system import processes
        processes.end_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        leave_a_number()
        time.sleep(250)
    """
    process = launcher(code, tmp_path, 2)
    ranks = pids(tmp_path, 2)
    try:
        assert all(map(alive, ranks))
        if ending == "killed":
            process.kill()
        else:
            while process.poll() is None:  # two that come at once count as one
                process.send_signal(signal.SIGINT)
                time.sleep(0.2)
        process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if ending == "killed" else 130)
        wait_until(lambda: not any(map(alive, ranks)))
    finally:
        for pid in filter(alive, ranks):
            os.kill(pid, signal.SIGKILL)


def test_a_process_that_nobody_launched_does_not_end_with_another(tmp_path):
    """The one that started it has ended when this looks."""
    code = f"""if True:
        import os, time
        from pathlib import Path
        from bit_paddle.system import processes
        processes.end_with_parent()
        Path({str(tmp_path / "0.part")!r}).write_text(str(os.getpid()))
        Path({str(tmp_path / "0.part")!r}).rename({str(tmp_path / "0.pid")!r})
        time.sleep(250)
    """
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}])"
    subprocess.run([sys.executable, "-c", start], cwd=ROOT, check=True)
    (pid,) = pids(tmp_path, 1)
    try:
        time.sleep(0.2)
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


# --- They compute as one ------------------------------------------------------------------------

SPLITS = {1: [1, 2], 2: [1, 2], 4: [1]}  # of a batch of 8, by the number of processes


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """What 1, 2 and 4 processes have computed: {count: ([what each tells], arrays)}."""
    folder = tmp_path_factory.mktemp("trained")
    script, found = ROOT / "tests/workers/training.py", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        for count, splits in SPLITS.items():
            arguments = [str(folder), str(image_folder), json.dumps(splits)]
            command = [sys.executable, "-W", "ignore", str(script), *arguments]
            assert processes.launch(command, count) == 0
            told = [
                json.loads((folder / f"{count}.{rank}.json").read_text()) for rank in range(count)
            ]
            found[count] = told, dict(np.load(folder / f"{count}.npz"))
    return found


def largest_difference(one, other):
    """Return the largest difference of arrays by the same names, relative to the largest value."""
    assert one.keys() == other.keys() and one
    assert all(array.dtype == np.float64 for array in one.values())
    return max(np.abs(one[key] - other[key]).max() / np.abs(one[key]).max() for key in one)


def arrays_of(arrays, title):
    start = f"{title}/"
    return {key[len(start) :]: array for key, array in arrays.items() if key.startswith(start)}


@pytest.mark.slow
def test_the_update_is_the_same_however_a_batch_is_shared_and_split(trained):
    """Ten updates of eight images, of which the fifth and the tenth have but four, with MixUp."""
    whole = arrays_of(trained[1][1], "8 in 1")
    assert len(whole["loss"]) == 10 and whole["loss"][-1] != whole["loss"][0]
    for count, splits in SPLITS.items():
        for split in splits:
            found = largest_difference(whole, arrays_of(trained[count][1], f"8 in {split}"))
            print(f"{count} processes, {split} parts: {found:.1e}")
            assert found < 1e-9


@pytest.mark.slow
def test_weights_of_classes_are_the_same_however_a_batch_is_shared_and_split(trained):
    """Four updates of 18 images of five classes, with MixUp; a process may be without an image."""
    whole = arrays_of(trained[1][1], "balanced in 1")
    unweighted = arrays_of(trained[1][1], "uneven in 1")
    assert largest_difference(whole, unweighted) > 1e-3
    for count, splits in SPLITS.items():
        for split in splits:
            found = largest_difference(whole, arrays_of(trained[count][1], f"balanced in {split}"))
            print(f"{count} processes, {split} parts: {found:.1e}")
            assert found < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    "title, step, shares", [("uneven", 2, [1, 1, 0, 0]), ("three", 0, [1, 1, 1, 0])]
)
def test_a_process_without_an_image_takes_part(title, step, shares, trained):
    """A batch of 8 of which 2 are left, and one of 3, for 4 processes."""
    assert [told["shares"][f"{title} in 1"][step] for told in trained[4][0]] == shares
    whole = arrays_of(trained[1][1], f"{title} in 1")
    for count in (2, 4):
        found = largest_difference(whole, arrays_of(trained[count][1], f"{title} in 1"))
        print(f"{title}, {count} processes: {found:.1e}")
        assert found < 1e-9


@pytest.mark.slow
def test_all_processes_have_the_same_weights_bit_for_bit(trained):
    for told, _ in trained.values():
        assert len(told[0]["hashes"]) >= 3
        assert all(one["hashes"] == told[0]["hashes"] for one in told)


@pytest.mark.slow
def test_a_step_exchanges_each_gradient_once_however_it_is_split(trained):
    """And six numbers: the loss, and whether a signal has come or memory has run out, twice."""
    for count, (told, _) in trained.items():
        for one in told:
            assert len(one["volumes"]) == 2 * len(SPLITS[count]) + 5
            for title, volumes in one["volumes"].items():
                ways = 2 if "shared" in title else 1  # weights come back from their owners
                expected = ways * one["parameters"][title] + 6 if count > 1 else 0
                assert one["parameters"][title] > 100_000 and set(volumes) == {expected}


@pytest.mark.slow
def test_gradients_are_exchanged_while_the_backward_pass_goes_on(trained):
    """All but the last few of 45, before it has come back to the first kernel; once a step."""
    for count in (2, 4):
        for one in trained[count][0]:
            for title, early in one["early"].items():
                assert len(early) == sum(share > 0 for share in one["shares"][title])
                assert all(sent > 40 for sent in early), title


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_sharing_out_gradients_and_momentum_changes_no_bit(count, trained):
    told, _ = trained[count]
    for title in ("8", "three", "balanced"):
        split = 1 if title == "three" else SPLITS[count][-1]
        plain, shared = f"{title} in {split}", f"shared {title} in {split}"
        total = told[0]["parameters"][plain]
        assert all(one["hashes"][shared] == one["hashes"][plain] for one in told)
        assert [one["velocities"][plain] for one in told] == [total] * count
        parts = [one["velocities"][shared] for one in told]
        assert sum(parts) == total and max(parts) < 1.2 * total / count


ROUNDED = """
    import warnings

    warnings.simplefilter("ignore")
    import numpy as np, paddle
    from bit_paddle.training import distributed

    paddle.set_default_dtype("float64")
    distributed.join()
    random = np.random.default_rng(rank)
    gradients = [random.normal(size=size) for size in (70_000, 3, 1000)]
    for shard in (False, True):
        parameters = [paddle.create_parameter(one.shape, "float64") for one in gradients]
        sums = distributed.GradientSums(parameters, shard, reduce_dtype="bf16")
        with sums.exchanged():
            aims = zip(parameters, map(paddle.to_tensor, gradients))
            sum((parameter * aim).sum() for parameter, aim in aims).backward()
        mine = [(str(k), one.grad) for k, one in enumerate(parameters) if one.grad is not None]
        found = {key: gradient.numpy() for key, gradient in mine}
        np.savez(tmp / f"{shard}{rank}.npz", **found)
    np.savez(tmp / f"own{rank}.npz", *gradients)
"""


CUTS = paddle.__version__.startswith("2.")  # bits off, instead of rounding


def to_bf16(values):
    """The nearest bfloat16, ties to even, by the bits of float32; if it `CUTS`, the next to 0."""
    bits = np.float32(values).view(np.uint32).astype(np.uint64)
    bits = (bits + (0 if CUTS else 0x7FFF + ((bits >> 16) & 1))) >> 16 << 16
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


@pytest.mark.slow
def test_gradients_are_summed_in_bf16_as_stated(launch, tmp_path):
    """Each is rounded, and each sum of two, to the bit: one starts the sum, two follow in a ring.

    A rounding errs by 2^-8 at most, and no part is rounded more than three times. So a sum is
    within 3 * 2^-8 of the size of its parts (and 1 % of that: sums of rounded parts are rounded).
    Paddle 2.6.2 cuts the bits off on a CPU, which errs by twice as much.
    """
    assert launch(ROUNDED, 3) == 0
    own = [np.load(tmp_path / f"own{rank}.npz") for rank in range(3)]
    error = 2**-7 if CUTS else 2**-8
    for shard in (False, True):
        found = [dict(np.load(tmp_path / f"{shard}{rank}.npz")) for rank in range(3)]
        assert sorted(key for one in found for key in one) == sorted("012" * (1 if shard else 3))
        for key in "012":
            a, b, c = (to_bf16(one[f"arr_{key}"]) for one in own)
            orders = [to_bf16(to_bf16(x + y) + z) for x, y, z in ((a, b, c), (b, c, a), (c, a, b))]
            sums = [one[key] for one in found if key in one]
            assert all((one == sums[0]).all() for one in sums)
            assert np.any([sums[0] == order for order in orders], axis=0).all()
            exact, size = sum(one[f"arr_{key}"] for one in own), abs(a) + abs(b) + abs(c)
            assert (abs(sums[0] - exact) < 1.01 * 3 * error * size).all()


@pytest.mark.slow
def test_validation_counts_the_same_on_any_number_of_processes(trained):
    (whole,) = trained[1][0]
    images, *counts, loss = whole["tally"]
    assert images == 1001 and 0 < sum(counts[0]) < 1001 and counts[1] == 1001
    for told, _ in trained.values():
        for one in told:
            assert one["tally"][:3] == [1001, *counts]
            assert one["tally"][3] == pytest.approx(loss, rel=1e-12, abs=0)


@pytest.fixture
def gpu_build(tmp_path, monkeypatch):
    """An environment in which a GPU build of Paddle is installed, as far as pip knows."""
    package = tmp_path / "site/paddlepaddle_gpu-2.6.2.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Name: paddlepaddle-gpu\nVersion: 2.6.2\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(processes, "_NVIDIA", tmp_path / "driver")
    return tmp_path / "driver"


def test_gpus_are_those_of_the_driver_or_the_environment(gpu_build, monkeypatch):
    for card in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (gpu_build / card).mkdir(parents=True)
    assert processes.gpus() == [0, 1, 2] and processes.gpus("2,0") == [2, 0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,4")
    assert processes.gpus() == [0, 1] and processes.gpus("4") == [1]
    for words, have in (("0", "6, 4"), ("4,4", "6, 4"), ("", "6, 4"), ("4,x", "6, 4")):
        with pytest.raises(errors.ConfigError, match=f"--devices.*there are {have}"):
            processes.gpus(words)
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert processes.gpus() == []


def test_without_a_gpu_build_there_are_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    if not processes.gpus():  # this machine's Paddle is for processors
        with pytest.raises(errors.ConfigError, match="no paddlepaddle-gpu"):
            processes.gpus("0")


def test_each_process_has_its_gpu(capfd):
    code = (
        "import os, sys; names = ('FLAGS_selected_gpus', 'PADDLE_DISTRI_BACKEND'); "
        "print([os.environ.get(name) for name in names], file=sys.stderr); "
        "sys.exit(int(os.environ['PADDLE_TRAINER_ID']))"
    )
    assert processes.launch([sys.executable, "-c", code], 2, gpus=[3, 1]) == 1
    err = capfd.readouterr().err
    assert "['3', 'nccl']" in err and "['1', 'nccl']" in err
