"""ResNetV2 with GroupNorm and weight standardization, as in Big Transfer (arXiv 1912.11370).

Activations are [N, C, H, W], kernels [O, I, H, W]. `layers` has the residual unit and its parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from bit_paddle.models.architecture import PARTS, Architecture, frozen_parts
from bit_paddle.models.layers import ZEROS, Bottleneck, GroupNormReLU, RootBlock, StdConv2D
from bit_paddle.models.native import plain

AMP = {"fp16": paddle.float16, "bf16": paddle.bfloat16}  # of activations between the layers

_BLOCKS = PARTS[1:5]


class ResNetV2(nn.Layer):
    """The network of ``architecture`` with a linear head of ``num_classes`` outputs (0: no head).

    ``model(images)`` returns logits [N, num_classes], or features [N, C] without a head. Images are
    [N, 3, H, W], RGB in [-1, 1], of 32 x 32 pixels or more. Kernels and the head are zero
    until `reset_parameters` or a checkpoint fills them.

    ``recompute`` "unit" or "block" saves only the inputs of units or blocks in training, and
    recomputes the rest for the gradients. This takes more time and less memory; the results have
    the same bits. ``amp`` "fp16" or "bf16" is the precision of the activations between layers and
    of the convolutions' inputs. Standardization, GroupNorm, sums, the last pooling, the head, the
    parameters and their gradients stay in float32.
    """

    def __init__(self, architecture: Architecture, num_classes: int = 0):
        super().__init__()
        self.architecture, self.num_classes = architecture, num_classes
        self.recompute = "off"  # or "unit" or "block"
        self.amp = "off"  # or a key of AMP
        self.frozen: tuple[str, ...] = ()  # the first of PARTS; set by `learn_only`
        self._operators: Any = plain
        channels = architecture.root_channels
        self.root_block = RootBlock(channels)
        for block, units in enumerate(architecture.units):
            middle = architecture.root_channels * 2**block
            layers = nn.Sequential()
            for unit in range(units):
                stride = 2 if block > 0 and unit == 0 else 1
                layers.add_sublayer(
                    f"unit{unit + 1:02d}", Bottleneck(channels, middle, stride, project=unit == 0)
                )
                channels = 4 * middle
            self.add_sublayer(f"block{block + 1}", layers)
        self.norm = GroupNormReLU(channels)
        if num_classes:
            self.head = nn.Linear(channels, num_classes, weight_attr=ZEROS, bias_attr=ZEROS)

    def compute_with(self, operators: Any) -> None:
        """Compute with ``operators``: `models.native.plain`, or an object with its functions."""
        self._operators = operators
        for layer in self.sublayers():
            if hasattr(layer, "operators"):
                layer.operators = operators
        if self.frozen:
            self._fold()

    def learn_only(self, learn: str) -> None:
        """Freeze what ``learn``, a word of `architecture.LEARN`, leaves out.

        Frozen parts come before all others. Their parameters get no gradients. In a forward pass
        they save no activations, and their kernels are standardized now instead of in every pass.
        """
        self.frozen = frozen_parts(learn)
        for name in PARTS:
            for parameter in getattr(self, name).parameters() if hasattr(self, name) else ():
                parameter.stop_gradient = name in self.frozen
        self._fold()

    def learned(self) -> dict[str, Tensor]:
        """Return {name: parameter} of the parameters that are not frozen, in their order."""
        return {name: one for name, one in self.named_parameters() if not one.stop_gradient}

    def forward(self, x: Tensor) -> Tensor:
        return self.learned_part(self.frozen_part(x))

    def frozen_part(self, x: Tensor) -> Tensor:
        """Return the output of the frozen parts, computed without gradients, for `learned_part`.

        If nothing is frozen, this is ``x`` as the operators take it.
        """
        x = self._enter(x)
        if not self.frozen:
            return x
        with paddle.no_grad():
            return self._through(self.frozen, x)

    def learned_part(self, x: Tensor) -> Tensor:
        """Return the logits, or features without a head, of a result of `frozen_part`."""
        if self.frozen and self.frozen[-1] != "norm":
            x = x.detach()
            # Else GroupNorm's backward pass fails in Paddle 2, and a PyLayer has none.
            x.stop_gradient = False
        return self._through(PARTS[len(self.frozen) :], x)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the four blocks, at strides 4, 8, 16 and 32, before activation."""
        return [self._operators.leave(stage) for stage in self._stages(x)]

    def forward_pooled(self, x: Tensor) -> Tensor:
        """Return the averages over the image of the four stages, then the features, [N, sum of C].

        The stages are taken as they are, before activation.
        """
        stages = self._stages(x)
        averages = [self._operators.average(stage) for stage in (*stages, self.norm(stages[-1]))]
        return paddle.concat(averages, axis=1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features [N, C]: the last stage, activated and averaged over the image."""
        return self._through(PARTS[:-1], self._enter(x))

    def forward_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [N, num_classes], and the maps [N, C, H/32, W/32] before the average.

        The averages of the maps are the features.
        """
        last = self.norm(self._through(PARTS[:5], self._enter(x)))
        return self.head(self._operators.average(last)), self._operators.leave(last)

    def _stages(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the four blocks as the operators lay them out."""
        x = self._output("root_block", self._enter(x))
        stages = []
        for block in _BLOCKS:
            x = self._output(block, x)
            stages.append(x)
        return stages

    def _enter(self, x: Tensor) -> Tensor:
        x = self._operators.enter(x)
        return x if self.amp == "off" else x.astype(AMP[self.amp])

    def _through(self, parts: Sequence[str], x: Tensor) -> Tensor:
        for part in parts:
            x = self._output(part, x)
        return x

    def _output(self, part: str, x: Tensor) -> Tensor:
        """Return the output of one of `PARTS`; of the norm it is averaged over the image."""
        if part == "root_block":
            return self.root_block(x)  # [N, 64 w, H/4, W/4]
        if part == "norm":
            return self._operators.average(self.norm(x))
        if part == "head":
            return self.head(x) if self.num_classes else x
        block = getattr(self, part)  # [N, 256 w, H/4, W/4] … [N, 2048 w, H/32, W/32]
        for layer in block if self.recompute == "unit" else [block]:
            recompute = self.training and self.recompute != "off"
            x = plain.recompute(layer, x) if recompute else layer(x)
        return x

    def eval(self) -> None:
        """Switch to inference: standardize all kernels now instead of in every pass.

        Passes under `paddle.no_grad` use these kernels. Loading parameters updates them; if you
        change a kernel in another way, call `eval` again.
        """
        super().eval()
        self._fold()

    def train(self) -> None:
        """Switch back to training."""
        super().train()
        self._fold()

    @paddle.no_grad()
    def _fold(self) -> None:
        """Standardize the kernels that stay as they are: in inference all, else the frozen ones."""
        for layer in self._convolutions():
            layer.folded = None
        parts = PARTS[:-1] if not self.training else self.frozen
        for layer in self._convolutions(parts):
            layer.folded = self._operators.standardize(layer.weight)

    def _convolutions(self, parts: Sequence[str] = PARTS[:-1]) -> list[StdConv2D]:
        layers = (layer for part in parts for layer in getattr(self, part).sublayers())
        return [layer for layer in layers if isinstance(layer, StdConv2D)]

    def set_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Load parameters as every Paddle layer does; also update the standardized kernels."""
        result = super().set_state_dict(*arguments, **options)
        self._fold()
        return result

    set_dict = load_dict = set_state_dict

    @contextmanager
    def standardized_once(self) -> Iterator[Callable[[], None]]:
        """Standardize every kernel once for all passes in the context, instead of once per pass.

        Backward passes in the context add their gradients at the standardized kernels. Call the
        yielded function before the last backward pass: that pass propagates the sums through the
        standardization to the kernels. The gradients are those of separate passes, because the
        standardization depends only on the kernels. Do not change the kernels in the context.
        Without a last pass, the gradients of the kernels are lost. Frozen kernels stay as they are.
        """
        convolutions = self._convolutions(PARTS[len(self.frozen) : -1])
        standardized = [self._operators.standardize(layer.weight) for layer in convolutions]
        for convolution, kernel in zip(convolutions, standardized):
            convolution.standardized = kernel.detach()  # a leaf: sums the gradients
            convolution.standardized.stop_gradient = kernel.stop_gradient

        def last_pass() -> None:
            for convolution, kernel in zip(convolutions, standardized):
                if not kernel.stop_gradient:
                    kernel.register_hook(partial(_with_earlier, convolution.standardized))
                convolution.standardized = kernel

        try:
            yield last_pass
        finally:
            for convolution in convolutions:
                convolution.standardized = None

    def reset_parameters(self, seed: int = 0) -> None:
        """Set random kernels (He's normal distribution, fan-in), identity GroupNorms, a zero head.

        A kernel depends only on its name and ``seed``, not on the device or Paddle's version.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("head."):
                parameter.set_value(
                    np.zeros(parameter.shape, np.float32).astype(_numpy_type(parameter))
                )
            elif name.endswith("conv.weight"):
                generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
                values = generator.standard_normal(parameter.shape, np.float32)
                values *= np.float32(np.sqrt(2.0 / np.prod(parameter.shape[1:])))
                parameter.set_value(values.astype(_numpy_type(parameter)))
            else:
                parameter.set_value(
                    np.full(parameter.shape, name.endswith("weight"), _numpy_type(parameter))
                )


def _with_earlier(leaf: Tensor, gradient: Tensor) -> Tensor:
    """Return ``gradient`` plus the gradient of ``leaf``, and free the latter."""
    if leaf.grad is None:
        return gradient
    total = gradient + leaf.grad
    leaf.clear_gradient(False)  # False frees the memory; Paddle ignores the keyword
    return total


def _numpy_type(parameter: Tensor) -> str:
    return str(parameter.dtype).rpartition(".")[2]
