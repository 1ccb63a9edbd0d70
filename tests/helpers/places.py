"""Where the tests, the goldens and the data of others are."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHARED = Path(os.environ.get("BIT_PADDLE_SHARED", ROOT.parent / "shared"))
