"""Seeds of random draws that depend on what they are for alone, so that nothing of them need be saved."""

from __future__ import annotations

import numpy as np


def seed_of(*numbers: int) -> int:
    """Return a seed for torch, from 0 to 2**63 - 1, that is a function of non-negative integers and their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
