"""What every network of standardized convolutions does: operators, inference, shared kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import Tensor, nn

from bit_paddle.models.layers import StdConv2D
from bit_paddle.models.native import plain


class Network(nn.Layer):
    """A network whose convolutions are `StdConv2D`."""

    operators: Any = plain
    prepared: dict[str, Any]  # {amp: the whole network as one operator}, see `Compiled.prepare`

    def __init__(self) -> None:
        super().__init__()
        self.prepared = {}

    def frozen_convolutions(self) -> list[StdConv2D]:
        """Return the convolutions that do not learn."""
        return []

    def compute_with(self, operators: Any) -> None:
        """Compute with ``operators``: `models.native.plain`, or an object with its functions."""
        for layer in self.sublayers(include_self=True):
            if hasattr(layer, "operators"):
                layer.operators = operators
        self._fold()

    def learned(self) -> dict[str, Tensor]:
        """Return {name: parameter} of the parameters that are not frozen, in their order."""
        return {name: one for name, one in self.named_parameters() if not one.stop_gradient}

    def eval(self) -> None:
        """Switch to inference: standardize all kernels once instead of in every pass.

        Passes under `paddle.no_grad` use the kernels of the first of them. Loading parameters
        updates the kernels; if you change one in another way, call `eval` again.
        """
        super().eval()
        self._fold()

    def train(self) -> None:
        """Switch back to training."""
        super().train()
        self._fold()

    @paddle.no_grad()
    def _fold(self) -> None:
        """Forget what was made of earlier kernels, and standardize the frozen ones.

        In inference the first pass does this for all kernels, as far as it uses them.
        """
        for layer in self.sublayers(include_self=True):
            if isinstance(layer, Network):
                layer.prepared = {}
            if isinstance(layer, StdConv2D):
                layer.folded = None
        ahead = self.training and self.operators.STANDARDIZES_AHEAD
        for layer in self.frozen_convolutions() if ahead else []:
            layer.folded = self.operators.standardize(layer.weight)

    def set_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Load parameters as every Paddle layer does; also update the standardized kernels."""
        result = super().set_state_dict(*arguments, **options)
        self._fold()
        return result

    set_dict = load_dict = set_state_dict

    @contextmanager
    def standardized_once(self) -> Iterator[Callable[[], None]]:
        """Standardize every kernel once for all passes in the context, instead of once per pass.

        The gradients of backward passes in the context are summed. Call the yielded function before
        the last backward pass, which propagates the sums to the kernels. The gradients are those of
        separate passes, because the standardization depends only on the kernels. Do not change the
        kernels in the context. Without a last pass, the gradients of the kernels are lost. Frozen
        kernels stay as they are.
        """
        frozen = set(self.frozen_convolutions())
        learned = [layer for layer in convolutions(self) if layer not in frozen]

        def use(kernels: Sequence[Any]) -> None:
            for layer, kernel in zip(learned, kernels):
                layer.standardized = kernel

        with self.operators.shared([layer.weight for layer in learned]) as (kernels, last):
            use(kernels)
            try:
                yield lambda: use(last())
            finally:
                use([None] * len(learned))


def convolutions(layer: nn.Layer) -> list[StdConv2D]:
    """Return the standardized convolutions within ``layer``, in the order of its sublayers."""
    return [one for one in layer.sublayers() if isinstance(one, StdConv2D)]


def dtype_of(tensor: Tensor) -> str:
    """Return the name of a tensor's data type, such as ``float32``."""
    return str(tensor.dtype).rpartition(".")[2]
