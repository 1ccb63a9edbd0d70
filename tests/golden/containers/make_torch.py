"""Write the small files of PyTorch, and the arrays that PyTorch reads from them.

Run in this folder with PyTorch 2.13.0. The files were written once, and are not written again.
"""

import argparse

import numpy as np
import torch

TYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 "
    "uint16 uint32 uint64"
).split()
ONLY_IN_ZIP = {"uint16", "uint32", "uint64", "float8"}

torch.manual_seed(0)
arrays = {kind: (50 * torch.randn(3, 4)).abs().to(getattr(torch, kind)) for kind in TYPES}
whole, noted, odd = torch.randn(10, 6), torch.randn(2), torch.nn.Parameter(torch.randn(2))
noted.note = odd.note = "an attribute"
arrays.update(
    transposed=torch.randn(5, 3).t(),
    whole=whole,
    sliced=whole[2:5, 1:4],
    column=whole[:, 2],
    scalar=torch.tensor(3.5),
    empty=torch.zeros(0, 4),
    parameter=torch.nn.Parameter(torch.randn(2)),
    parameter_with_note=odd,
    tensor_with_note=noted,
    buffer=torch.nn.Buffer(torch.randn(2)),
)
special = {
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "sparse": torch.eye(3).to_sparse(),
    "quantized": torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
    "conjugated": torch.randn(2, dtype=torch.complex64).conj(),
}
everything = {**arrays, **special}
without_new = {name: value for name, value in everything.items() if name not in ONLY_IN_ZIP}
for protocol in (2, 4):
    torch.save(everything, f"torch_zip{protocol}.pth", pickle_protocol=protocol)
    torch.save(
        without_new,
        f"torch_stream{protocol}.pth",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=False,
    )
read = torch.load("torch_zip2.pth", weights_only=True)
np.savez_compressed(
    "torch.npz",
    **{
        name: (read[name].float() if name == "bfloat16" else read[name]).detach().numpy()
        for name in arrays
    },
)

net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
optimizer = torch.optim.AdamW(net.parameters())
net(torch.ones(1, 3, 8, 8)).sum().backward()
optimizer.step()
weights = torch.nn.DataParallel(net).state_dict()
training = {
    "epoch": 3,
    "arch": "net",
    "state_dict": weights,
    "optimizer": optimizer.state_dict(),
    "args": argparse.Namespace(lr=0.1, scale=[0.08, 1.0]),
    "metric": np.float64(0.5),
    "state_dict_ema": {name: 2 * value for name, value in weights.items()},
}
torch.save(training, "torch_training.pth.tar", _use_new_zipfile_serialization=False)
torch.save(net, "torch_module.pth")
torch.serialization.set_crc32_options(False)
torch.save(training, "torch_training_without_sums.pth")
np.savez("torch_training.npz", **{name[len("module.") :]: weights[name] for name in weights})
