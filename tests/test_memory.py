import numpy as np
import pytest

from osteomorph import memory
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.recipes import recipe


def test_the_estimate_grows_with_the_pair_and_falls_with_the_spacing():
    small, large = Grid((160, 160, 96), np.eye(4)), Grid((320, 320, 96), np.eye(4))
    plan = recipe("default")
    coarse = plan.model_copy(update={"prepare": plan.prepare.model_copy(update={"spacing_mm": 2.0})})
    assert memory.estimate_bytes(small, small, plan) < memory.estimate_bytes(large, large, plan)
    assert memory.estimate_bytes(large, large, coarse) < memory.estimate_bytes(large, large, plan)


def test_512_voxels_a_side_of_a_whole_pelvis_fit_into_8_gb():
    grid = Grid((512, 512, 512), np.diag([455 / 512, 250 / 512, 297 / 512, 1.0]))
    for name in ("default", "one-shot"):
        plan = recipe(name)
        needed = memory.estimate_bytes(grid, grid, plan)
        assert needed < 8 * 2**30
        unlimited = plan.model_copy(update={"prepare": plan.prepare.model_copy(update={"most_voxels": None})})
        assert memory.estimate_bytes(grid, grid, unlimited) > needed


def test_too_large_a_pair_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**30)
    grid = Grid((512, 512, 512), np.eye(4))
    with pytest.raises(InputError, match=r"1\.0 GB are available.*spacing_mm"):
        memory.check_memory(grid, grid, recipe("default"))


def test_a_limit_on_the_address_space_counts():
    resource = pytest.importorskip("resource", reason="no such limit on Windows")
    before = resource.getrlimit(resource.RLIMIT_AS)
    free = memory.available_bytes()
    try:
        import psutil

        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**28, before[1]))
        assert memory.available_bytes() <= 2**28 < free
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
