"""The packages to install; all else is in pyproject.toml."""

from setuptools import find_packages, setup

# An installed package knows the data sets of configs/ too. A list that is partly found and partly
# named cannot be said in pyproject.toml.
setup(
    packages=[*find_packages(include=["bit_paddle", "bit_paddle.*"]), "bit_paddle.configs"],
    package_dir={"bit_paddle.configs": "configs"},
)
