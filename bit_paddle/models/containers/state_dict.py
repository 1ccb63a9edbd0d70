"""Where the weights are in what PyTorch and Paddle users save: wrapped, prefixed, or neither."""

from __future__ import annotations

from typing import Any, Callable

# The first that holds arrays is taken. timm's `load_state_dict` prefers the moving average, too.
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "params",
    "network",
    "module",
)

PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning


def find(
    value: Any, is_array: Callable[[Any], bool], levels: int = 2
) -> tuple[dict[str, Any], str | None]:
    """Return the dictionary with the arrays, and where it was: ``"model.state_dict"``, or None.

    The dictionary is empty if there is none.
    """
    if not isinstance(value, dict):
        return {}, None
    for key in WRAPPERS if levels else ():
        inner, place = find(value.get(key), is_array, levels - 1)
        if inner:
            return inner, f"{key}.{place}" if place else key
    return (value if any(map(is_array, value.values())) else {}), None


def without_prefixes(arrays: dict[str, Any]) -> dict[str, Any]:
    """Remove the prefixes that all names share."""
    while arrays:
        shared = [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in arrays)]
        if not shared:
            break
        arrays = {name[len(shared[0]) :]: value for name, value in arrays.items()}
    return arrays
