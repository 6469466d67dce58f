# SPDX-License-Identifier: Apache-2.0
"""The GPUs of this machine, against the kernels of the installed torch."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence

import torch

from ahpa_scale.commands.doctor.finding import Finding, note, ok, wrong

#: "sm_90a" and its like run on that one architecture only.
_KERNEL = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def findings() -> Iterator[Finding]:
    """Looks at the driver, at each GPU and at NCCL."""
    driver = _driver()
    if not torch.cuda.is_available():
        yield _no_gpu(driver)
        return
    yield ok("driver", f"{driver or 'unknown'}; torch is built for CUDA {torch.version.cuda}")
    kernels = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        yield judge(
            f"gpu {index}",
            torch.cuda.get_device_name(index),
            torch.cuda.get_device_capability(index),
            torch.cuda.get_device_properties(index).total_memory,
            kernels,
        )
    if torch.distributed.is_nccl_available():
        yield ok("nccl", ".".join(map(str, torch.cuda.nccl.version())))
    else:
        yield wrong("nccl", "this torch has none, and several GPUs can't train together")


def judge(
    subject: str, name: str, capability: tuple[int, int], memory: int, kernels: Sequence[str]
) -> Finding:
    """Whether torch can use a GPU.

    Args:
        subject: of the finding.
        name: of the GPU.
        capability: its compute capability: major, minor.
        memory: its bytes.
        kernels: what torch was compiled for, as ``sm_90`` and ``compute_90``.
    """
    told = f"{name}, {memory / 2**30:.0f} GiB, sm_{capability[0]}{capability[1]}"
    if not any(_runs(kernel, capability) for kernel in kernels):
        return wrong(
            subject,
            f"{told}; this torch has kernels for {' '.join(kernels)} only: install a torch built "
            "for it",
        )
    if capability < (8, 0):
        return note(subject, f"{told}; it lacks bfloat16: use precision=amp_fp16 or fp32")
    return ok(subject, told)


def _runs(kernel: str, capability: tuple[int, int]) -> bool:
    """Binaries run on later minors of their major, and PTX on whatever came later."""
    match = _KERNEL.fullmatch(kernel)
    if match is None:
        return False
    kind, major, minor, special = match[1], int(match[2]), int(match[3]), match[4]
    if special == "a":
        return (major, minor) == capability
    if kind == "compute" and not special:
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]


def _no_gpu(driver: str | None) -> Finding:
    if driver is None:
        return note("gpu", "there is none: training runs on the CPU, which suits the demo only")
    if torch.version.cuda is None:
        told = f"the driver {driver} is there, but this torch is built for the CPU"
        return wrong("gpu", f"{told}: install one for CUDA")
    return wrong(
        "gpu",
        f"the driver {driver} is there, but torch, built for CUDA {torch.version.cuda}, can't use "
        "it: update the driver, or give the container its GPUs",
    )


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    words = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    versions = done.stdout.split()
    return versions[0] if done.returncode == 0 and versions else None
