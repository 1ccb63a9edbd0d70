"""Packaging: ``pip install '.[cpu,digits]'``, or ``'.[gpu]'`` where there is a GPU."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "bit_paddle/__init__.py").read_text())[1]

setup(
    name="bit_paddle",
    version=VERSION,
    description="Big Transfer (BiT) in PaddlePaddle: fine-tuning exactly as published",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=[*find_packages(include=["bit_paddle", "bit_paddle.*"]), "bit_paddle.configs"],
    package_dir={"bit_paddle.configs": "configs"},  # an installed package knows its data sets too
    package_data={
        "bit_paddle": ["pretrained/*.npz"],
        "bit_paddle.configs": ["**/*.yaml"],
        "bit_paddle.models.native": ["*.cc", "*.h"],
    },
    install_requires=[
        "crc32c",
        "filelock",
        "matplotlib",
        "numpy",
        "pillow>=9.1",
        "pyyaml",
        "requests",
        "scipy",
        "tqdm",
        "visualdl",
    ],
    extras_require={
        "cpu": ["paddlepaddle>=2.6.2"],
        "gpu": ["paddlepaddle-gpu>=2.6.2"],
        "digits": ["scikit-learn"],
        "export": ["safetensors"],
        "onnx": ["onnx", "onnxruntime"],
        "native": ["setuptools"],
        "bench": ["torch", "transformers"],
        "dev": ["hypothesis", "pytest", "ruff"],
    },
)
