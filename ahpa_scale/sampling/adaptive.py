# SPDX-License-Identifier: Apache-2.0
"""Solvers that choose their steps by themselves (Dormand and Prince 1980), from two libraries.

Shape legend: B batch, C channels, H W, F = C H W.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ahpa_scale.sampling.guidance import Field

#: Errors allowed per step, as in SiT's released sampler.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-6
_MOST_STEPS = 10_000


def solve_each(field: Field, x_BCHW: Tensor) -> Tensor:
    """From noise (t = 1) to data (t = 0), with steps of its own for each sample.

    A sample doesn't depend on the others of its batch. The library is torchode (Lienen and
    Guennemann 2022, arXiv 2210.12375).

    Args:
        field: the velocity; called with float32 times [B].
        x_BCHW: float32 noise.

    Raises:
        RuntimeError: a solution could not be found: steps became too small or too many.
    """
    import torchode

    shape = x_BCHW.shape

    def f(t_B: Tensor, x_BF: Tensor) -> Tensor:
        return field(x_BF.view(shape), t_B).flatten(1)

    term = torchode.ODETerm(f)
    control = torchode.IntegralController(atol=_ABSOLUTE, rtol=_RELATIVE, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), control, max_steps=_MOST_STEPS)
    start_B = torch.ones(shape[0], device=x_BCHW.device)
    problem = torchode.InitialValueProblem(
        y0=x_BCHW.flatten(1), t_start=start_B, t_end=torch.zeros_like(start_B)
    )
    solution = solver.solve(problem)
    if bool((solution.status != 0).any()):
        raise RuntimeError(
            f"dopri5 found no solution: torchode's states {solution.status.tolist()}"
        )
    return solution.ys[:, -1].view(shape)


def solve_batch(field: Field, x_BCHW: Tensor) -> Tensor:
    """From noise to data, with the same steps for the whole batch, as SiT's released sampler.

    The steps suit the batch's mean error, so a sample depends on the others of its batch. The
    library is torchdiffeq.
    """
    from torchdiffeq import odeint

    times = torch.tensor([1.0, 0.0], device=x_BCHW.device)

    def f(t: Tensor, x: Tensor) -> Tensor:
        return field(x, t.expand(x.shape[0]))

    solved = odeint(f, x_BCHW, times, method="dopri5", rtol=_RELATIVE, atol=_ABSOLUTE)
    last_BCHW: Tensor = solved[-1]
    return last_BCHW
