import sys

import pytest
from campaigns.hostile import GOOD, campaign

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and the limits of Linux")
CASES, SHARE = 2000, 250


@pytest.mark.filterwarnings("ignore")  # of decoders, in the processes of the cases
@pytest.mark.parametrize("first", range(0, CASES, SHARE))
def test_hostile_files_end_in_a_sentence(first: int) -> None:
    bad = [one for one in campaign(range(first, first + SHARE), seed=0) if one.kind not in GOOD]
    assert not bad, "\n\n".join(f"case {one.number}: {one.kind}\n{one.about}" for one in bad[:5])
