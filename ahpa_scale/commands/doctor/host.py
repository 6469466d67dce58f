# SPDX-License-Identifier: Apache-2.0
"""Limits of this host or container."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator

from ahpa_scale.commands.doctor.finding import Finding, note, ok, wrong

_MEMORY = "/dev/shm"
#: Loaders' workers hand batches over in shared memory. Docker's default, 64 MB, is too little.
_LEAST_SHARED, _ENOUGH_SHARED = 128 * 2**20, 2**30
#: A rank with many workers and shards has some hundred files open.
_ENOUGH_FILES = 4096


def findings() -> Iterator[Finding]:
    """Looks at processors, memory, shared memory and open files."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield ok("host", f"{cores} processors for this process, {_size(memory)} memory")
    yield shared_memory(shutil.disk_usage(_MEMORY).free if os.path.isdir(_MEMORY) else None)
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def shared_memory(free: int | None) -> Finding:
    """Judges the free bytes of /dev/shm; None where there is none."""
    subject, remedy = "shared memory", "give the container more (--shm-size=8g, or a memory volume)"
    if free is None:
        return wrong(subject, f"there is no {_MEMORY}; {remedy}")
    told = f"{_size(free)} free in {_MEMORY}"
    if free < _LEAST_SHARED:
        return wrong(subject, f"{told}; {remedy}")
    return ok(subject, told) if free >= _ENOUGH_SHARED else note(subject, f"{told}; {remedy}")


def open_files(soft: int, hard: int) -> Finding:
    """Judges the limits of open files."""
    told = f"at most {soft if soft != resource.RLIM_INFINITY else 'any number'} in a process"
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH_FILES:
        return ok("open files", told)
    most = "unlimited" if hard == resource.RLIM_INFINITY else hard
    return note("open files", f"{told}; many loader workers need more: ulimit -n {most}")


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
