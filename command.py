#!/usr/bin/env python3
"""Download the 285 VTAB checkpoints: ``python command.py --help``."""

import sys

from bit_paddle import bulk, errors

if __name__ == "__main__":
    sys.exit(errors.run_command(bulk.main, sys.argv[1:]))
