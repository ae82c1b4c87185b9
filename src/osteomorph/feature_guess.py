"""A smooth field in one shot: the shipped network's features of both images, matched by a discrete search."""

from dataclasses import replace

from osteomorph.bone_network import BoneNetwork, unit_intensities
from osteomorph.case import Case
from osteomorph.discrete import discrete_field
from osteomorph.foreground import foreground
from osteomorph.found_bones import features_of
from osteomorph.image import Image
from osteomorph.plan import DiscretePlan
from osteomorph.transforms import Displacement, Rigid


def feature_field(case: Case, start: Rigid, plan: DiscretePlan, network: BoneNetwork | None = None) -> Displacement:
    """u in mm, fixed mm -> fixed mm: x + u(x), then the start, leads to what the fixed image shows at x.

    case: as given, in the intensities of its files. Features do not turn with the image, but were trained to match under
    rotations of up to 30 degrees. Air has no say, nor has what either mask leaves out.
    """
    fixed, moving = features_of(case.fixed, network), features_of(case.moving, network)
    back = start.inverse().matrix
    weight = foreground(_prepared(case.fixed)) if case.fixed_mask is None else case.fixed_mask
    known = None if case.moving_mask is None else replace(case.moving_mask, grid=case.moving_mask.grid.moved(back))
    return discrete_field(fixed, Image(moving.data, moving.grid.moved(back)), plan, weight, known)


def _prepared(image: Image) -> Image:
    return image.with_data(unit_intensities(image.data[:1]))
