"""ResNetV2 with GroupNorm and weight standardization, as in Big Transfer (arXiv 1912.11370).

Activations are [N, C, H, W], kernels [O, I, H, W]. `layers` has the residual unit and its parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import paddle
from paddle import Tensor, nn

from bit_paddle.models import heads
from bit_paddle.models.architecture import PARTS, Architecture, frozen_parts
from bit_paddle.models.layers import Bottleneck, GroupNormReLU, RootBlock, StdConv2D, head_of
from bit_paddle.models.native import plain
from bit_paddle.models.network import Network, convolutions, dtype_of

AMP = {"fp16": paddle.float16, "bf16": paddle.bfloat16}  # of activations between the layers

_BLOCKS = PARTS[1:5]


class ResNetV2(Network):
    """The network of ``architecture`` with its head of ``num_classes`` outputs (0: no head).

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
            self.head = head_of(architecture.head, channels, num_classes)

    @property
    def last_linear(self) -> nn.Linear:
        """The last layer: that of the logits."""
        return self.head.linear

    @property
    def reads_two_stages(self) -> bool:
        """Whether the head takes stage 3 beside the last one."""
        return self.num_classes > 0 and self.architecture.head == heads.LOCAL

    def frozen_convolutions(self) -> list[StdConv2D]:
        return [layer for part in self.frozen for layer in convolutions(getattr(self, part))]

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

    def forward(self, x: Tensor) -> Tensor:
        if self.reads_two_stages:
            return self.head(*self._two_stages(x))
        whole = self._whole(x)
        if whole is not None:
            return self._output("head", self._pooled(whole(x)[0]))
        return self.learned_part(self.frozen_part(x))

    def _whole(self, x: Tensor) -> Callable[..., list[Tensor]] | None:
        """Return the network up to its last norm as one operator, see `plain.prepare`.

        It is there in inference without gradients, if the operators have it.
        """
        if self.training or paddle.is_grad_enabled():
            return None
        if self.amp not in self.prepared:
            parameters = [self.root_block.conv.weight]
            for part in _BLOCKS:
                for unit in getattr(self, part):
                    parameters += unit.in_order()
            parameters += [self.norm.weight, self.norm.bias]
            units, half = self.architecture.units, self.amp == "bf16"
            self.prepared[self.amp] = self.operators.prepare(x, parameters, units, half)
        return self.prepared[self.amp]

    def frozen_part(self, x: Tensor) -> Tensor:
        """Return the output of the frozen parts, computed without gradients, for `learned_part`.

        If nothing is frozen, this is ``x`` as the operators take it. It is not for a head that
        `reads_two_stages`.
        """
        x = self._enter(x)
        if not self.frozen:
            return x
        with paddle.no_grad():
            return self._through(self.frozen, x)

    def learned_part(self, x: Tensor) -> Tensor:
        """Return the logits, or features without a head, of a result of `frozen_part`."""
        if self.frozen and self.frozen[-1] != "norm":
            x = _entering_learned(x)
        return self._through(PARTS[len(self.frozen) :], x)

    def forward_stages(self, x: Tensor, activated: bool = False) -> list[Tensor]:
        """Return the outputs of the four blocks, at strides 4, 8, 16 and 32.

        They are sums before activation. ``activated`` applies to each the GroupNorm and ReLU that
        the network itself applies next: those of the following unit, or the last ones.
        """
        return [self.operators.leave(stage) for stage in self.stages(x, activated)]

    def stages(self, x: Tensor, activated: bool = False, skip: int = 0) -> list[Tensor]:
        """Return the maps of `forward_stages` but the first ``skip``, in the operators' layout."""
        whole = self._whole(x)
        if whole is not None:
            return self._stages_of(whole, x, activated)[skip:]
        x, stages = self._enter(x), []
        is_activated = False  # whether the norm of the next unit has been applied to x
        for number, (part, following) in enumerate(zip(PARTS[:5], PARTS[1:6])):
            with self._gradients_of(part):
                x = self._output(part, x, is_activated)
            if part in self.frozen and following not in self.frozen:
                x = _entering_learned(x)
            is_activated = activated and number > skip  # number 0 is the root
            with self._gradients_of(following):
                if is_activated and following == "norm":
                    x = self.norm(x)
                elif is_activated:
                    x, stage = getattr(self, following).unit01.a.norm(x, twice=True)
                    # So that the unit's gradients are summed before the stage's, as in `recompute`.
                    x = paddle.assign(x) if x is stage else x
            if number > skip:
                stages.append(stage if is_activated and following != "norm" else x)
        return stages

    def _stages_of(
        self, whole: Callable[..., list[Tensor]], x: Tensor, activated: bool
    ) -> list[Tensor]:
        *stages, last = whole(x, True)
        if not activated:
            return stages
        following = (getattr(self, part).unit01.a.norm for part in _BLOCKS[1:])
        return [*(norm(stage) for norm, stage in zip(following, stages)), last]

    def _gradients_of(self, part: str) -> AbstractContextManager:
        return paddle.no_grad() if part in self.frozen else nullcontext()

    def forward_pooled(self, x: Tensor) -> Tensor:
        """Return the averages over the image of the four stages, then the features, [N, sum of C].

        The stages are taken as they are, before activation.
        """
        stages = self.stages(x)
        averages = [self.operators.average(stage) for stage in (*stages, self.norm(stages[-1]))]
        return paddle.concat(averages, axis=1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features [N, C]: the last stage, activated and averaged over the image."""
        return self.operators.average(self._last_stage(x))

    def forward_joined(self, x: Tensor) -> Tensor:
        """Return what the last linear layer takes, [N, inputs]; without a head, the features."""
        if not self.num_classes:
            return self.forward_features(x)
        if self.reads_two_stages:
            return self.head.joined(*self._two_stages(x))
        return self.head.joined(self.head.pool(self._last_stage(x)))

    def forward_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [N, num_classes], and the maps [N, inputs, H/32, W/32].

        The averages of the maps are what the last linear layer takes. Instead, a head that
        `reads_two_stages` gives its attention [N, 1, H/16, W/16].
        """
        if self.reads_two_stages:
            stages = self._two_stages(x)
            return self.head(*stages), self.head.attention(*stages)
        last = self._last_stage(x)
        return self.head(self.head.pool(last)), self.head.maps(last)

    def _last_stage(self, x: Tensor) -> Tensor:
        whole = self._whole(x)
        if whole is not None:
            return whole(x)[0]
        return self.norm(self._through(PARTS[:5], self._enter(x)))

    def _two_stages(self, x: Tensor) -> list[Tensor]:
        return self.stages(x, activated=True, skip=2)

    def _enter(self, x: Tensor) -> Tensor:
        x = self.operators.enter(x)
        return x if self.amp == "off" else x.astype(AMP[self.amp])

    def _through(self, parts: Sequence[str], x: Tensor) -> Tensor:
        for part in parts:
            x = self._output(part, x)
        return x

    def _output(self, part: str, x: Tensor, is_activated: bool = False) -> Tensor:
        """Return the output of one of `PARTS`; of the norm it is pooled for the head.

        ``is_activated``: ``x`` has passed the first norm of this block already.
        """
        if part == "root_block":
            return self.root_block(x)  # [N, 64 w, H/4, W/4]
        if part == "norm":
            return self._pooled(self.norm(x))
        if part == "head":
            return self.head(x) if self.num_classes else x
        units = list(getattr(self, part))  # [N, 256 w, H/4, W/4] … [N, 2048 w, H/32, W/32]
        if is_activated:
            units[0] = units[0].of_activated
        for layer in units if self.recompute == "unit" else [partial(_in_turn, units)]:
            recompute = self.training and self.recompute != "off"
            x = plain.recompute(layer, x) if recompute else layer(x)
        return x

    def _pooled(self, last: Tensor) -> Tensor:
        """Return what the head takes of the last stage after its norm; without a head, its mean."""
        return self.head.pool(last) if self.num_classes else self.operators.average(last)

    def reset_parameters(self, seed: int = 0) -> None:
        """Set random kernels (He's normal distribution, fan-in), identity GroupNorms, a zero head.

        Of a head that is not linear, the last layer is zero. A kernel depends only on its name and
        ``seed``, not on the device or Paddle's version.
        """
        self._reset("", seed)

    def reset_head(self, seed: int = 0) -> None:
        """Set the parameters of the head as `reset_parameters` does."""
        self._reset("head.", seed)

    def _reset(self, prefix: str, seed: int) -> None:
        last = list(self.last_linear.parameters()) if self.num_classes else []
        for name, parameter in self.named_parameters():
            if not name.startswith(prefix):
                continue
            if any(parameter is one for one in last):
                values = np.zeros(parameter.shape)
            elif parameter.ndim == 4:
                generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
                values = generator.standard_normal(parameter.shape, np.float32)
                # The attention starts almost even.
                scored = name.startswith("head.attention")
                variance = 1e-4 if scored else 2.0 / np.prod(parameter.shape[1:])
                values *= np.float32(np.sqrt(variance))
            else:
                values = np.full(parameter.shape, name.endswith("weight"))
            parameter.set_value(values.astype(dtype_of(parameter)))


def _in_turn(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _entering_learned(x: Tensor) -> Tensor:
    """Return ``x``, computed by frozen parts, for those that learn."""
    x = x.detach()
    x.stop_gradient = False  # else GroupNorm's backward pass fails in Paddle 2; a PyLayer has none
    return x
