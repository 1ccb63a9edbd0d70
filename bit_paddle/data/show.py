"""The old address of ``python -m bit_paddle.show``."""

import sys

from bit_paddle import errors, show

if __name__ == "__main__":
    print("note: this command is now python -m bit_paddle.show", file=sys.stderr)
    sys.exit(errors.run_command(show.main, sys.argv[1:]))
