import sys

import pytest
from campaigns.kills import campaign

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork, and names as Linux has them")


def test_a_training_that_is_killed_anywhere_resumes_to_the_same_bits() -> None:
    bad = [one for one in campaign(kills=3, seed=1) if one.problems]
    assert not bad
