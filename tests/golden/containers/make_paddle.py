"""Write the small files of Paddle 2.6.2, and the arrays that are in them.

Run in this folder with Paddle 2.6.2. The files were written once, and are not written again; tests
call `save_all` with the Paddle that is installed.
"""

from pathlib import Path

import numpy as np

TYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
).split()


def save_all(folder: Path, version: str) -> None:
    import paddle

    paddle.seed(0)
    arrays = {kind: (50 * paddle.randn([3, 4])).abs().astype(kind) for kind in TYPES}
    arrays["scalar"] = paddle.to_tensor(3.5)
    arrays["empty"] = paddle.zeros([0, 4])
    arrays["large"] = paddle.randn([30, 40])  # its bytes stay in the file
    arrays["transposed"] = paddle.randn([5, 3]).t()
    for protocol in (2, 3, 4):
        paddle.save(arrays, str(folder / f"{version}_{protocol}.pdparams"), protocol=protocol)
    paddle.save({"model": arrays, "epoch": 3}, str(folder / f"{version}_wrapped.pdparams"))
    paddle.save(arrays["large"], str(folder / f"{version}_tensor.pdparams"))
    np.savez_compressed(
        folder / f"{version}.npz",
        **{
            name: (value.astype("float32") if name == "bfloat16" else value).numpy()
            for name, value in arrays.items()
        },
    )


if __name__ == "__main__":
    save_all(Path("."), "paddle_2.6.2")
