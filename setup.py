"""Packaging of bit_paddle: ``pip install '.[cpu,digits]'`` or ``pip install '.[gpu]'``."""
from setuptools import setup

setup()
