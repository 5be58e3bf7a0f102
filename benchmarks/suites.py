"""The suites by name, and how one of them runs: apart from the others."""

import importlib
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

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


def in_a_fresh_process(name: str, settings: Settings) -> Outcome:
    """The same, of a process that did nothing before.

    After large work the allocator keeps what was freed, and everything is faster; most of all the side that
    allocates most. So what a suite measures would depend on the suites before it.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run_suite, name, settings).result()
