"""BiT's network in plain NumPy, float64, with its gradients: a second writing of the formulae.

Each function returns its result, and a function from the gradient of the result to those of the
inputs. Activations are [N, C, H, W], kernels [O, I, H, W]. Parameters have the names of `ResNetV2`.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def standardize(weight):
    """(w - mean) / sqrt(variance + 1e-10) over each output."""
    flat = weight.reshape(len(weight), -1)
    scale = np.sqrt(flat.var(axis=1, keepdims=True) + 1e-10)
    result = (flat - flat.mean(axis=1, keepdims=True)) / scale

    def backward(gradient):
        gradient = gradient.reshape(flat.shape)
        along = (gradient * result).mean(axis=1, keepdims=True) * result
        found = (gradient - gradient.mean(axis=1, keepdims=True) - along) / scale
        return found.reshape(weight.shape)

    return result.reshape(weight.shape), backward


def convolve(x, weight, stride):
    """A convolution with the standardized kernel; zeros pad by half of its size."""
    kernel, of_kernel = standardize(weight)
    side, (height, width) = kernel.shape[-1], x.shape[2:]
    pad = side // 2
    padded = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    windows = sliding_window_view(padded, (side, side), (2, 3))[:, :, ::stride, ::stride]
    result = np.tensordot(windows, kernel, ([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)

    def backward(gradient):
        of_windows = np.tensordot(gradient, kernel, (1, 0)).transpose(0, 3, 1, 2, 4, 5)
        rows, columns = (stride * size for size in gradient.shape[2:])
        total = np.zeros_like(padded)
        for top in range(side):
            for left in range(side):
                place = np.s_[:, :, top : top + rows : stride, left : left + columns : stride]
                total[place] += of_windows[..., top, left]
        of_x = total[:, :, pad : pad + height, pad : pad + width]
        return of_x, of_kernel(np.tensordot(gradient, windows, ([0, 2, 3], [0, 2, 3])))

    return result, backward


def norm_relu(x, scale, bias, groups=32):
    """GroupNorm with an epsilon of 1e-5, then ReLU."""
    parts = x.reshape(len(x), groups, -1)
    deviation = np.sqrt(parts.var(axis=2, keepdims=True) + 1e-5)
    unit = (parts - parts.mean(axis=2, keepdims=True)) / deviation
    spread = unit.reshape(x.shape)
    result = spread * scale[:, None, None] + bias[:, None, None]

    def backward(gradient):
        gradient = gradient * (result > 0)
        inner = (gradient * scale[:, None, None]).reshape(parts.shape)
        along = (inner * unit).mean(axis=2, keepdims=True) * unit
        of_x = (inner - inner.mean(axis=2, keepdims=True) - along) / deviation
        sums = (gradient * spread).sum((0, 2, 3)), gradient.sum((0, 2, 3))
        return of_x.reshape(x.shape), *sums

    return np.maximum(result, 0), backward


def pool(x):
    """The maxima of 3 x 3 pixels at a stride of 2; the zeros of the padding count."""
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
    flat = windows.reshape(*windows.shape[:4], 9)

    def backward(gradient):
        total, found = np.zeros_like(padded), flat.argmax(axis=4)
        n, c, h, w = np.indices(found.shape)
        np.add.at(total, (n, c, 2 * h + found // 3, 2 * w + found % 3), gradient)
        return total[:, :, 1:-1, 1:-1]

    return flat.max(axis=4), backward


class Twin:
    """The network with these ``parameters``, a dictionary of arrays; a unit per block."""

    def __init__(self, parameters):
        self.parameters = parameters

    def gradients(self, x, of_logits):
        """Return the logits [N, K] of images [N, 3, H, W], and the gradient of each parameter.

        ``of_logits`` gives the gradient of the loss at the logits.
        """
        found, stack = {}, []

        def convolution(x, name, stride=1):
            y, back = convolve(x, self.parameters[f"{name}.conv.weight"], stride)

            def backward(gradient):
                of_x, found[f"{name}.conv.weight"] = back(gradient)
                return of_x

            return y, backward

        def norm(x, name):
            names = f"{name}.weight", f"{name}.bias"
            y, back = norm_relu(x, *(self.parameters[key] for key in names))

            def backward(gradient):
                of_x, found[names[0]], found[names[1]] = back(gradient)
                return of_x

            return y, backward

        def unit(x, name, stride):
            y, enter = norm(x, f"{name}.a.norm")
            shortcut, project = convolution(y, f"{name}.proj", stride)
            y, first = convolution(y, f"{name}.a")
            backs = []
            for part, step in (("b", stride), ("c", 1)):
                y, back = norm(y, f"{name}.{part}.norm")
                backs.append(back)
                y, back = convolution(y, f"{name}.{part}", step)
                backs.append(back)

            def backward(gradient):
                inner = gradient
                for back in reversed(backs):
                    inner = back(inner)
                return enter(first(inner) + project(gradient))

            return y + shortcut, backward

        x, back = convolution(x, "root_block", 2)
        stack.append(back)
        x, back = pool(x)
        stack.append(back)
        for block in range(4):
            x, back = unit(x, f"block{block + 1}.unit01", 2 if block else 1)
            stack.append(back)
        x, back = norm(x, "norm")
        stack.append(back)
        features = x.mean(axis=(2, 3))
        logits = features @ self.parameters["head.weight"] + self.parameters["head.bias"]
        gradient = of_logits(logits)
        found["head.weight"], found["head.bias"] = features.T @ gradient, gradient.sum(axis=0)
        gradient = (gradient @ self.parameters["head.weight"].T)[:, :, None, None]
        gradient = np.broadcast_to(gradient / np.prod(x.shape[2:]), x.shape)
        for back in reversed(stack):
            gradient = back(gradient)
        return logits, found
