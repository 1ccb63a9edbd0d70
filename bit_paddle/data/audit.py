"""Another address of ``python -m bit_paddle.audit``."""

import sys

from bit_paddle import audit, errors

if __name__ == "__main__":
    sys.exit(errors.run_command(audit.main, sys.argv[1:]))
