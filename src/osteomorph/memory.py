"""How much memory a registration will take, known before it begins."""

from pathlib import Path

import psutil

from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.plan import Plan
from osteomorph.prepare import MARGIN_MM, affordable, canonical_grid

BASE_BYTES = 600 * 2**20
"""Libraries and small change."""


def estimate_bytes(fixed: Grid, moving: Grid, plan: Plan) -> int:
    """Peak of a registration of these two grids; measured peaks stand beside it in docs/benchmarks.md."""
    settings = affordable(plan.prepare, fixed)
    target, other = (canonical_grid(grid, settings) for grid in (fixed, moving))
    if plan.bones == "exact":
        given = 6 * (fixed.voxels + moving.voxels)  # images, and labels in two bytes
        registering = (358 if plan.soft.levels else 170) * target.voxels
        stored = [min(grid.voxels, 2 * even.voxels) for grid, even in ((fixed, target), (moving, other))]
        writing = 40 * target.voxels + 12 * stored[0] + 40 * stored[1] + 10 * fixed.voxels + 4 * moving.voxels
        return int(BASE_BYTES + given + max(registering, writing))
    margin = int(MARGIN_MM / settings.spacing_mm)
    carried = target.padded((margin, margin, margin))
    channels = 13 if plan.refine.weights.mind > 0 and plan.refine.levels else 1
    field = target.resampled(plan.refine.field_spacing_mm).voxels if plan.refine.levels else 0
    native = 12 * (fixed.voxels + moving.voxels)  # images and labels as they came
    preparing = 16 * (target.voxels + other.voxels)
    describing = 4 * (channels + 6) * (target.voxels + carried.voxels)
    optimising = 4 * 3 * 20 * field
    writing = 12 * fixed.voxels + 4 * 3 * 12 * field
    return int(BASE_BYTES + native + max(preparing + describing + optimising, writing))


def available_bytes() -> int:
    """Memory this process may still take: what the machine has free, or less where a limit is set."""
    limits = [psutil.virtual_memory().available]
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft - psutil.Process().memory_info().vms)
    except ImportError:  # Windows has no such limit
        pass
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text) - psutil.Process().memory_info().rss)
    return max(0, min(limits))


def check_memory(fixed: Grid, moving: Grid, plan: Plan) -> int:
    """The estimate; InputError where it exceeds what is available."""
    needed, free = estimate_bytes(fixed, moving, plan), available_bytes()
    if needed > free:
        raise InputError(
            f"This pair needs about {needed / 2**30:.1f} GB of memory and {free / 2**30:.1f} GB are available. Crop the "
            f"images, or give a plan with a larger prepare.spacing_mm (now {plan.prepare.spacing_mm:g} mm)."
        )
    return needed


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    try:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
