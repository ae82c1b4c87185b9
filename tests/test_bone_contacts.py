"""Two bright boxes with a dark plane between them, and a border that lies beside it."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from osteomorph.bone_contacts import parted

SPACING_MM = (1.0, 0.8, 2.0)


def scene(normal, border_mm: float, spacing_mm=SPACING_MM, half_mm=(18.0, 8.0, 10.0)):
    """Numbers and a CT: bones 3 and 7 meet where the normal through the middle is 0; the border is said to be elsewhere."""
    spacing = np.array(spacing_mm)
    shape = tuple(int(2 * 22 / s) for s in spacing)
    index = np.stack(np.indices(shape)) - (np.array(shape)[:, None, None, None] - 1) / 2
    points = index * spacing[:, None, None, None]
    axes = Rotation.align_vectors([normal], [[1, 0, 0]])[0].as_matrix()
    along = np.einsum("ad,aijk->dijk", axes, points)
    bone = (np.abs(along) < np.array(half_mm)[:, None, None, None]).all(0)
    truth = np.where(bone, np.where(along[0] < 0, 3, 7), 0).astype(np.int32)
    said = np.where(bone, np.where(along[0] < border_mm, 3, 7), 0).astype(np.int32)
    generator = np.random.default_rng(0)
    image = np.where(bone, 700.0, 50.0) + 30 * generator.standard_normal(shape)
    dark_mm = max(0.75, 0.55 * float(np.linalg.norm(np.multiply(normal, spacing))))  # a voxel at least
    image -= 500 * bone * (np.abs(along[0]) < dark_mm)
    return truth, said, image.astype(np.float32), np.abs(along[0])


@pytest.mark.parametrize("normal", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, -0.64, 0.48)], ids=str)
@pytest.mark.parametrize("border_mm", [-3.0, 2.5])
def test_the_border_goes_where_it_is_dark(normal, border_mm):
    truth, said, image, off_mm = scene(normal, border_mm)
    found = parted(said, image, np.array(SPACING_MM))
    assert found.dtype == said.dtype
    assert np.array_equal(found > 0, said > 0)
    away = (truth > 0) & (off_mm > 2.4)
    assert np.array_equal(found[away], truth[away])
    assert (found != truth).sum() < 0.35 * (said != truth).sum()


def test_bones_that_do_not_touch_stay_as_they_are():
    _, said, image, off_mm = scene((1, 0, 0), 0.0)
    said[off_mm < 1.6] = 0
    assert np.array_equal(parted(said, image, np.array(SPACING_MM)), said)


def test_a_bone_that_lies_all_in_the_contact_keeps_its_voxels():
    _, said, image, _ = scene((1, 0, 0), 13.5)  # 4.5 mm of bone 7
    assert np.array_equal(parted(said, image, np.array(SPACING_MM)), said)


def test_other_bones_are_not_touched():
    _, said, image, _ = scene((1, 0, 0), 2.5)
    said[:, :6], image[:, :6] = 5, 900.0
    found = parted(said, image, np.array(SPACING_MM))
    assert np.array_equal(found == 5, said == 5)
    assert not np.array_equal(found, said)
