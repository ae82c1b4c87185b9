"""Grids that every geometric claim is tested on, the awkward ones first."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osteomorph.geometry import Grid


def oblique_grid(shape=(24, 20, 12), spacing=(0.7, 1.1, 3.0), angles=(12, -25, 40), origin=(31.0, -17.0, 5.0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.asarray(spacing)
    affine[:3, 3] = origin
    return Grid(shape, affine)


def axis_grid(signs, shape=(22, 18, 16), spacing=(1.0, 1.25, 1.5), origin=(-11.0, 7.0, 40.0)) -> Grid:
    affine = np.diag([*(np.asarray(signs) * spacing), 1.0])
    affine[:3, 3] = origin
    return Grid(shape, affine)


def sagittal_grid(shape=(20, 18, 10), spacing=(0.9, 0.9, 2.0)) -> Grid:
    """Axes run inferior, posterior, left, as in sagittal MR."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, -1], [0, -1, 0], [-1, 0, 0]]) * np.asarray(spacing)
    affine[:3, 3] = (9.0, 4.0, 60.0)
    return Grid(shape, affine)


GRIDS = {
    "oblique": oblique_grid(),
    "RAS": axis_grid((1, 1, 1)),
    "LAS": axis_grid((-1, 1, 1)),
    "LPS": axis_grid((-1, -1, 1)),
    "sagittal": sagittal_grid(),
}


@pytest.fixture(params=list(GRIDS), ids=str)
def grid(request) -> Grid:
    return GRIDS[request.param]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small arrays: more threads cost more than they bring, above all on a busy machine


@pytest.fixture(scope="session")
def pair():
    """A simulated pair at 3 mm, made once."""
    from osteomorph.simulate import phantom

    return phantom.tiny(0)


@pytest.fixture(scope="session")
def bone_points():
    """(pair, label, within_mm) -> random fixed points in a bone, or within a distance of it."""

    def points(pair, label, within_mm=0.0):
        grid = pair.case.fixed.grid
        generator = torch.Generator().manual_seed(1)
        unit = torch.rand(3, 60_000, dtype=torch.float64, generator=generator)
        inside = grid.world(unit * (torch.tensor(grid.shape)[:, None] - 1))
        return inside[:, pair.truth.distance(label, inside) <= within_mm]

    return points
