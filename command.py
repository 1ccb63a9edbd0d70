#!/usr/bin/env python3
"""Download the 285 VTAB checkpoints: ``python command.py --help``."""

import sys

from bit_paddle import download

if __name__ == "__main__":
    download.script(sys.argv[1:])
