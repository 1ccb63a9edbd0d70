#!/usr/bin/env python3
"""Download the 285 VTAB checkpoints: ``python command.py --help``."""

import os
import sys

from bit_paddle import download, errors

if __name__ == "__main__":
    status = errors.run_command(download.main, sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # not waiting for transfers of silent servers; what has arrived is kept
