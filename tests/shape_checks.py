"""The checks of shapes that `conftest.py` turns on, turned off for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping


@contextmanager
def no_shape_checks() -> Iterator[None]:
    """For tracing, whose symbolic sizes they do not know, and for thousands of calls of one shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
