"""The suites by name, and what one of them measures.

Each is to run in a process that did nothing before: after large work the allocator keeps what was freed, and
everything is faster, most of all the side that allocates most.
"""

import importlib
import traceback

import torch

from benchmarks.settings import Outcome, Settings, reason
from unimask.benchmark.tables import Table


def run_suite(name: str, settings: Settings) -> Outcome:
    """What the module of that name measures; where it fails, a table that says why."""
    torch.set_num_threads(settings.threads)
    try:
        outcome: Outcome = importlib.import_module(f"benchmarks.{name}").run(settings)
    except Exception as error:  # the other suites are run nevertheless
        traceback.print_exc()
        table = Table(title=f"Suite {name}", about=reason(error), columns=("suite",), rows=((name,),))
        return Outcome(tables=(table,), details={"failed": str(error)})
    return outcome
