# SPDX-License-Identifier: Apache-2.0
"""python -m tools.drill: has small jobs meet 27 kinds of errors, 30 signals and 10 outages.

It needs root (it mounts small file systems), about an hour of two cores that do nothing else, and
the tests' packages. It ends with 1 if a case failed.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tools.drill import errors, outages, signals
from tools.drill.places import Places, places
from tools.drill.results import Result, left, write

Case = Callable[[Path, Places], Result]
WORKERS = (0, 8)


def all_cases(seed: int) -> dict[str, Case]:
    """Every case by its name."""
    cases: dict[str, Case] = {}
    for kind in errors.KINDS:
        for workers in WORKERS:
            if workers or not kind.workers:
                cases[f"error/{kind.name}/{workers}"] = partial(errors.meet, kind, workers)
    for blow in signals.blows(seed):
        cases[f"signal/{blow.name}"] = partial(signals.strike, blow)
    for role, outage in outages.cases():
        cases[f"outage/{role}/{outage}"] = partial(outages.endure, role, outage, seed)
    return cases


def main(argv: Sequence[str]) -> int:
    """Runs the cases that are wanted."""
    parser = argparse.ArgumentParser(prog="python -m tools.drill", description=__doc__)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN",
                        help="cases, as in 'error/*/0' or 'outage/data/*'")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/drill.json"),
                        help="the results; a table lies beside them")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the signals' moments")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--keep", action="store_true", help="keep the folders of failed cases")
    given = parser.parse_args(argv)
    cases = all_cases(given.seed)
    chosen = [n for n in cases if any(fnmatch.fnmatch(n, only) for only in given.only)]
    if given.list:
        print("\n".join(chosen))
        return 0
    if not chosen:
        parser.error(f"no case is named {' '.join(given.only)}; --list names them")
    if os.geteuid() != 0:
        parser.error("this needs root, for file systems of its own")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    # So that jobs, servers and mounts go with a drill that is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # A shell makes its background processes ignore Ctrl-C, and jobs would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return drill({name: cases[name] for name in chosen}, given.out, given.seed, given.keep)


def drill(cases: dict[str, Case], out: Path, seed: int, keep: bool) -> int:
    """Runs cases one after the other; 1 if one failed."""
    results: dict[str, Result] = {}
    begun = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="drill-"))
    try:
        with places(root) as shared:
            for name, case in cases.items():
                print(f"{left(begun, len(results), len(cases))}: {name}", flush=True)
                folder = root / name.replace("/", "-")
                results[name] = result = case(folder, shared)
                told = "; ".join(result.problems)
                print(
                    f"    {'ok' if result.passed else f'FAULT: {told}'} ({result.line})", flush=True
                )
                write(out, results, seed)
                if result.passed or not keep:
                    shutil.rmtree(folder, ignore_errors=True)
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
    failed = sum(not result.passed for result in results.values())
    print(f"{len(results) - failed} of {len(results)} passed; table: {out.with_suffix('.md')}")
    if keep and failed:
        print(f"folders of those that failed: {root}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
