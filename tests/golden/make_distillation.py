"""Write distillation.npz: ten steps of function matching in PyTorch, in float64.

Run in this folder with PyTorch 2.13.0. Teacher and student are two layers with tanh between them,
which is enough: loss, clipping, optimizer and schedule do not depend on the network. All random
numbers come from one ``default_rng(0)`` in the order of `numbers`, so the file holds results only.
"""

import math

import numpy as np

FEATURES, HIDDEN, TAUGHT, CLASSES, BATCH = 12, 7, 16, 5, 8
STEPS, WARMUP, BASE_LR, DECAY, LARGEST = 10, 3, 0.03, 3e-4, 1.0


def numbers():
    """Return the student's weights, the teacher's, and (images, lambda, partners) of each step."""
    random = np.random.default_rng(0)

    def network(hidden, scale):
        shapes = (FEATURES, hidden), (hidden,), (hidden, CLASSES), (CLASSES,)
        return [scale * random.standard_normal(shape) for shape in shapes]

    student, teacher, steps = network(HIDDEN, 0.5), network(TAUGHT, 0.7), []
    for _ in range(STEPS):
        images = 2 * random.standard_normal((BATCH, FEATURES))
        steps.append((images, random.beta(1.0, 1.0), random.permutation(BATCH)))
    return student, teacher, steps


def main():
    import torch

    def outputs(weights, images):
        first, bias, second, last = weights
        return torch.tanh(images @ first + bias) @ second + last

    student, teacher, steps = numbers()
    student = [torch.nn.Parameter(torch.tensor(one)) for one in student]
    teacher = [torch.tensor(one) for one in teacher]
    kernels, others = student[::2], student[1::2]
    optimizer = torch.optim.AdamW(  # multiplies its weight decay by the rate; ours by the schedule
        [
            {"params": kernels, "weight_decay": DECAY / BASE_LR},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=BASE_LR,
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS - WARMUP)
    rates = [BASE_LR * step / WARMUP for step in range(WARMUP)]
    found = {"losses": [], "norms": [], "rates": []}
    for step, (images, lam, partners) in enumerate(steps):
        if step < WARMUP:
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
        elif step == WARMUP:
            for group in optimizer.param_groups:
                group["lr"] = BASE_LR
        images = torch.tensor(lam * images + (1 - lam) * images[partners])
        wanted, given = outputs(teacher, images), outputs(student, images)
        loss = torch.nn.functional.kl_div(
            given.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
        )
        optimizer.zero_grad()
        loss.backward()
        # Not clip_grad_norm_, which divides by the norm + 1e-6; optax divides by the norm.
        norm = torch.nn.utils.get_total_norm([one.grad for one in student])
        for one in student:
            one.grad *= min(1.0, LARGEST / float(norm))
        found["losses"].append(loss.item())
        found["norms"].append(float(norm))
        found["rates"].append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step >= WARMUP:
            cosine.step()
    assert math.isclose(cosine.get_last_lr()[0], 0.0, abs_tol=1e-12)
    assert max(found["norms"]) > LARGEST > min(found["norms"])
    for name, one in zip(("kernel1", "bias1", "kernel2", "bias2"), student):
        state = optimizer.state[one]
        found[f"weight/{name}"] = one.detach().numpy()
        found[f"mean/{name}"], found[f"variance/{name}"] = state["exp_avg"], state["exp_avg_sq"]
    np.savez_compressed("distillation.npz", **{key: np.asarray(one) for key, one in found.items()})


if __name__ == "__main__":
    main()
