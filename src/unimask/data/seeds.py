"""Random generators whose state is a function of a key."""

import numpy as np
import torch


def seeded_generator(*key: int) -> torch.Generator:
    """Return a generator whose state is a function of all the numbers; none may be negative."""
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))
