"""Bounds on time in tests: they tell an answer from a hang, not a fast machine from a busy one."""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("PFORCE_TEST_PATIENCE", "5"))
"""Bounds are longer by this factor than on an idle machine. 1 there checks them as they are promised."""
