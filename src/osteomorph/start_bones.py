"""A rigid start on bones that the shipped network finds and can name in both images, where images alone leave it open."""

import numpy as np
import torch
from jaxtyping import Float64
from scipy import ndimage
from torch import Tensor

from osteomorph.bone_names import LEVELS
from osteomorph.bone_network import BoneNetwork
from osteomorph.case import Case
from osteomorph.errors import StartError
from osteomorph.found_bones import find_bones
from osteomorph.image import Labels
from osteomorph.initialise import Start, initialise
from osteomorph.measure import fit_rigid
from osteomorph.plan import InitialisePlan
from osteomorph.start_images import climbed
from osteomorph.transforms import Rigid

NAMES = (*LEVELS, "sacrum", "hip_left", "hip_right")
"""Bones that count. What of a femur is in view differs too much."""

LEAST_NAMES = 2
"""Named in both images, without which there is no start."""

UPRIGHT_MM = 30.0
"""Arm by which a patient's axes count beside each bone: the turn about a straight spine is taken from the headers."""

SAME_MM = 12.0
"""Two starts that are no further apart lead to the same place."""

LARGEST_MM = 20.0
"""From where the named bones lie on each other, to where mutual information is largest nearby; beyond, the bones are right."""


def images_or_bones(
    case: Case, prepared: Case, plan: InitialisePlan, seed: int, from_centres: bool, network: BoneNetwork | None = None
) -> tuple[Start, tuple[str, ...]]:
    """`initialise`; where images alone give no start, or one that needs a second look, the start on bones, and a note why.

    Raises StartError where neither is found.
    """
    try:
        start = initialise(prepared, plan, seed, from_centres)
    except StartError as error:
        try:
            return start_on_bones(case, prepared, plan, seed, network), (NOTE + str(error),)
        except StartError:
            raise error from None
    if start.method != "images" or not start.warnings:
        return start, ()
    try:
        return start_on_bones(case, prepared, plan, seed, network), (NOTE + " ".join(start.warnings),)
    except StartError:
        return start, ()


NOTE = "The rigid start is on bones that are named in both images. On the images alone: "
LOST = NOTE + "no bone was found from there."


def elsewhere(
    case: Case, prepared: Case, plan: InitialisePlan, seed: int, first: Rigid, network: BoneNetwork | None = None
) -> Start | None:
    """The start on bones where there is one that takes the fixed image more than `SAME_MM` away from where a first one does."""
    try:
        start = start_on_bones(case, prepared, plan, seed, network)
    except StartError:
        return None
    points = prepared.fixed.grid.strided(8).points(torch.float64).flatten(1)
    apart_mm = float((start.rigid(points) - first(points)).norm(dim=0).median())
    return start if apart_mm > SAME_MM else None


def start_on_bones(case: Case, prepared: Case, plan: InitialisePlan, seed: int, network: BoneNetwork | None = None) -> Start:
    """Where bones of one name lie on each other, then the nearest maximum of mutual information.

    case: as given, for the network, which wants the intensities of the files. prepared: from it. Neither the frames nor the
    fields of view of the two images have to have anything in common, but both know which way is up. Raises StartError where
    fewer than two bones are named in both.
    """
    here, there = (_middles(find_bones(image, network).labels) for image in (case.fixed, case.moving))
    names = [name for name in NAMES if name in here and name in there]
    if len(names) < LEAST_NAMES:
        told = ", ".join(names) or "none"
        raise StartError(f"Too few bones are named in both images for a start on them ({told}). Give labels of both images.")
    arms = torch.cat([torch.zeros(3, 1), torch.eye(3), -torch.eye(3)], 1).double() * UPRIGHT_MM
    points, moved = (torch.cat([side[name][:, None] + arms for name in names], 1) for side in (here, there))
    bones = Rigid(fit_rigid(points, moved)[0])
    pose, score, apart_mm = climbed(prepared, plan, bones, seed)
    rigid = pose if apart_mm <= LARGEST_MM else bones
    return Start(rigid, "bones", score, ())


def _middles(labels: Labels) -> dict[str, Float64[Tensor, "3"]]:
    """Name -> middle in world mm, of the bones that do not touch the border of the field of view."""
    data = labels.data[0].numpy()
    out = {}
    for number, box in enumerate(ndimage.find_objects(data), 1):
        name = labels.name(number)
        if box is None or name not in NAMES or _at_border(box, data.shape):
            continue
        index = torch.as_tensor(np.argwhere(data[box] == number).T + np.array([[s.start] for s in box])).double()
        out[name] = labels.grid.world(index.mean(1, keepdim=True))[:, 0]
    return out


def _at_border(box: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    return any(s.start == 0 or s.stop == n for s, n in zip(box, shape, strict=True))
