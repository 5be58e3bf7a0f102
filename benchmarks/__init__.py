"""This library beside its peers, in one run: `python -m benchmarks` (see docs/performance.md)."""
