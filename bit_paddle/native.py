"""The old address of ``python -m bit_paddle.compile``."""

import sys

from bit_paddle import compile, errors

if __name__ == "__main__":
    print("note: this command is now python -m bit_paddle.compile", file=sys.stderr)
    sys.exit(errors.run_command(compile.main, sys.argv[1:]))
