"""Processes that others started."""

import subprocess


def descendants(root: int, word: str) -> list[int]:
    """The processes under a process whose command has a word."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    inside = {root}
    for _ in range(10):
        inside |= {int(pid) for pid, parent, *_ in rows if int(parent) in inside}
    return [int(row[0]) for row in rows if int(row[0]) in inside and word in row[-1]]
