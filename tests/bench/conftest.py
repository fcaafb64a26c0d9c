"""The benchmark lies among the scripts, which are no package of their own."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = str(Path(__file__).parents[2] / "scripts")

if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)
