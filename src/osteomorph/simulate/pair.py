"""One simulated pair: parameters drawn from a seed, then a CT and an MR with the exact transform between them.

A procedural anatomy is drawn at every voxel of both images, so that none is resampled, and labels are exact in both. An
anatomy from a real CT keeps that CT as its moving image, voxel for voxel; its MR is painted from its tissues.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.simulate import motion, soft
from osteomorph.simulate.anatomy import Anatomy, Points, Triple, View
from osteomorph.simulate.ct import CtScan, draw_ct
from osteomorph.simulate.motion import DIFFICULTIES, Motion
from osteomorph.simulate.mr import MrScan, draw_mr
from osteomorph.simulate.segmentation import SegmentationError, draw_segmentation_error, label_maps
from osteomorph.simulate.texture import texture
from osteomorph.simulate.truth import Truth, in_parts, joint_gap_mm, least_determinant, near_joints
from osteomorph.threads import threads
from osteomorph.transforms import Displacement

LEAST_GAP_MM = 1.2
"""Between two bones of the fixed image; draws that come closer are drawn again."""

LEAST_DETERMINANT = 0.1
"""Of the true transform's Jacobian; draws below are drawn again."""

DRAWS = 60
"""Attempts at a motion before it is called too large."""

SOFT = ("harmonic", "elastic", "flow")
"""Generators of soft tissue's motion."""

MOVING_MARGIN_MM = 16.0
"""By which the CT's field of view is larger than the MR's."""


@final
@dataclass(frozen=True)
class Settings:
    """What a pair should be like.

    view: one of the anatomy's fields of view; None for its usual one. size_mm: another size for it.
    fixed_mm, moving_mm: spacing of the MR (in plane, in plane, between slabs) and of the CT.
    motion: how far things move. soft: one of `SOFT`. contrast: of the MR, as `draw_mr` takes it.
    orientation: how the MR's slabs lie: ``"sagittal"``, ``"coronal"`` or ``"axial"``.
    oblique_deg: largest tilt of the MR's axes. extras: whether the CT may have a table, contrast agent, a low dose.
    """

    view: str | None = None
    size_mm: Triple | None = None
    fixed_mm: Triple = (0.6, 0.6, 0.8)
    moving_mm: Triple = (0.64, 0.64, 0.7)
    motion: Motion = DIFFICULTIES["thesis"]
    soft: str = "harmonic"
    contrast: str = "gre"
    orientation: str = "sagittal"
    oblique_deg: float = 5.0
    extras: bool = True

    def coarser(self, spacing_mm: float) -> "Settings":
        """The same with voxels whose volume is that of ``spacing_mm`` cubed, in the same proportions."""
        fixed, moving = (np.array(part) * spacing_mm / np.prod(part) ** (1 / 3) for part in (self.fixed_mm, self.moving_mm))
        return replace(self, fixed_mm=_triple(fixed), moving_mm=_triple(moving))


@final
@dataclass(frozen=True)
class Parameters:
    """All that is random in a pair, beside the anatomy. Lengths in mm, rotation vectors in degrees, seeds of the fields."""

    seed: int
    attempt: int
    steps: Mapping[int, motion.Step]
    offset_rotation_deg: Triple
    offset_shift_mm: Triple
    tilt_deg: Triple
    skin_mm: float
    force_mm: float
    force_seed: int
    texture_seed: int
    ct: CtScan
    mr: MrScan
    fixed_error: SegmentationError
    moving_error: SegmentationError


@final
@dataclass(frozen=True, eq=False)
class SimulatedPair:
    """fixed(x) shows what moving(truth(x)) shows.

    case: fixed MR and moving CT (HU), each with the exact labels of the bones that are whole in the view.
    fixed_observed, moving_observed: those labels with the errors of a segmentation.
    truth: fixed mm -> moving mm, exact; rigid in every bone, labelled or not.
    displacement: the truth at the voxels of the fixed image.
    poses: bone -> (4, 4) fixed mm -> moving mm, RAS.
    fixed_bones: every bone on the fixed grid, those without a label in the case too.
    fixed_body: 1 inside the skin, on the fixed grid.
    """

    case: Case
    fixed_observed: Labels
    moving_observed: Labels
    truth: Truth
    displacement: Displacement
    poses: dict[int, np.ndarray]
    fixed_bones: Labels
    fixed_body: Labels
    settings: Settings
    parameters: Parameters

    def record(self) -> dict[str, Any]:
        """Settings, drawn parameters and the 4x4 of every bone, fit for JSON."""
        assert self.case.fixed_labels is not None
        labelled = self.case.fixed_labels.names
        names = self.truth.anatomy.names
        bones = [
            {"label": k, "name": names[k], "labelled": k in labelled, "matrix": pose.tolist()}
            for k, pose in sorted(self.poses.items())
        ]
        return {
            "frame": "RAS mm, fixed -> moving",
            "bones": bones,
            "settings": asdict(self.settings),
            "parameters": asdict(self.parameters),
        }


def simulate(anatomy: Anatomy, settings: Settings | None = None, seed: int = 0) -> SimulatedPair:
    """A pair from an anatomy and a seed: the same of both gives the same arrays.

    Raises InputError: no such view, soft tissue or contrast; or no motion without folds or colliding bones was found.
    """
    settings = settings or Settings()
    view = _view(anatomy, settings)
    if settings.soft not in SOFT:
        raise InputError(f"No soft tissue is called {settings.soft!r}. Choose from {', '.join(SOFT)}.")
    with threads(1):  # steps here are many and short, and run in parts on every core
        parameters, truth = _draw_until_sound(anatomy, settings, view, seed)
        return _acquire(truth, settings, view, parameters)


def _view(anatomy: Anatomy, settings: Settings) -> View:
    name = settings.view or next(iter(anatomy.views))
    if name not in anatomy.views:
        raise InputError(f"This anatomy has no view {name!r}. Choose from {', '.join(anatomy.views)}.")
    view = anatomy.views[name]
    return view if settings.size_mm is None else replace(view, size_mm=settings.size_mm)


# -- drawn here ---------------------------------------------------------------------------------------------------------------
def _draw_until_sound(anatomy: Anatomy, settings: Settings, view: View, seed: int) -> tuple[Parameters, Truth]:
    """The first draw without a collision or a fold; every few draws a little less motion is asked for."""
    bones = motion.samples(anatomy, view)
    room = motion.Room(anatomy, LEAST_GAP_MM + 0.2)
    for attempt in range(DRAWS):
        parameters = _draw(anatomy, settings, view, bones, room, seed, attempt)
        around = _fixed_grid(replace(settings, fixed_mm=(3.5,) * 3), view, parameters).points(torch.float64).flatten(1)
        poses = motion.poses(anatomy, view, parameters.steps, bones)
        joints = near_joints(anatomy, poses, around)
        if joint_gap_mm(anatomy, poses, joints) < LEAST_GAP_MM:
            continue
        truth = _transform(anatomy, settings, view, parameters, poses)
        if all(least_determinant(truth, points) > LEAST_DETERMINANT for points in (joints, around) if points.shape[1]):
            return parameters, truth
    raise InputError(
        f"No motion without folds or colliding bones was found in {DRAWS} draws of seed {seed}. "
        "Ask for less motion (--difficulty thesis) or another seed."
    )


def _draw(
    anatomy: Anatomy,
    settings: Settings,
    view: View,
    bones: Mapping[int, Points],
    room: motion.Room,
    seed: int,
    attempt: int,
) -> Parameters:
    generator = np.random.default_rng((seed, attempt))
    wanted, less = settings.motion, 0.95**attempt
    steps = motion.draw_steps(anatomy.joints, wanted.turn, generator, room)
    goal = less * generator.uniform(*wanted.bone_mm)
    turn, move = (axis / np.linalg.norm(axis) for axis in generator.standard_normal((2, 3)))
    return Parameters(
        seed=seed,
        attempt=attempt,
        steps=motion.scale_to(anatomy.joints, steps, bones, motion.reference(anatomy, view), goal),
        offset_rotation_deg=_triple(turn * generator.uniform(*wanted.offset_deg)),
        offset_shift_mm=_triple(move * generator.uniform(*wanted.offset_mm)),
        tilt_deg=_triple(generator.uniform(-1, 1, 3) * settings.oblique_deg),
        skin_mm=less * generator.uniform(*wanted.skin_mm),
        force_mm=float(generator.uniform(20.0, 35.0)),
        force_seed=int(generator.integers(0, 2**31)),
        texture_seed=int(generator.integers(0, 2**31)),
        ct=draw_ct(generator) if settings.extras else draw_ct(generator, low_dose=False, contrast_agent=False, table=False),
        mr=draw_mr(generator, settings.contrast),
        fixed_error=draw_segmentation_error(generator),
        moving_error=draw_segmentation_error(generator),
    )


def _triple(values: np.ndarray) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z


# -- applied here -------------------------------------------------------------------------------------------------------------
def _transform(
    anatomy: Anatomy, settings: Settings, view: View, parameters: Parameters, poses: Mapping[int, np.ndarray]
) -> Truth:
    lattice = soft.lattice_over(_fixed_grid(replace(settings, fixed_mm=(1.0,) * 3), view, parameters))
    offset = motion.rigid_about(view.centre_mm, parameters.offset_rotation_deg, parameters.offset_shift_mm)
    force = soft.random_force(lattice, parameters.force_mm, parameters.force_seed)
    displacement, nodes = soft.soft_field(settings.soft, anatomy, poses, lattice, force, parameters.skin_mm)
    return soft.Blend(anatomy, poses, offset, soft.coefficients(displacement), nodes)


def _acquire(truth: Truth, settings: Settings, view: View, parameters: Parameters) -> SimulatedPair:
    anatomy, bank = truth.anatomy, texture(parameters.texture_seed)
    fixed_grid = _fixed_grid(settings, view, parameters)
    fixed_points = fixed_grid.points(torch.float64).flatten(1)
    at_fixed = truth.to_anatomy(fixed_points)
    displacement = (motion.apply(truth.offset, at_fixed) - fixed_points).float().unflatten(1, fixed_grid.shape)
    del fixed_points

    def where(points: Points) -> Points:
        same = points.shape == at_fixed.shape  # voxel centres: known already
        return at_fixed if same else truth.to_anatomy(points.double())

    fixed = parameters.mr.acquire(anatomy, where, fixed_grid, bank)
    back = np.linalg.inv(truth.offset)
    if anatomy.scan is None:
        moving_grid = _moving_grid(settings, view, truth.offset)
        moving = parameters.ct.acquire(anatomy, lambda points: motion.apply(back, points), moving_grid, bank)
    else:
        moving = _seen_through(anatomy.scan, truth.offset)
    at_moving = motion.apply(back, moving.grid.points(torch.float64).flatten(1))
    labelled = {k: anatomy.names[k] for k in view.labelled}
    bones, fixed_observed = label_maps(anatomy, at_fixed, fixed_grid, labelled, truth.poses, parameters.fixed_error)
    moving_labels, moving_observed = label_maps(anatomy, at_moving, moving.grid, labelled, labelled, parameters.moving_error)
    body = (in_parts(lambda part: anatomy.body(part)[None], at_fixed)[0] < 0).to(torch.int16).unflatten(0, fixed_grid.shape)
    return SimulatedPair(
        case=Case(fixed, moving, replace(bones.only(labelled), names=labelled), moving_labels),
        fixed_observed=fixed_observed,
        moving_observed=moving_observed,
        truth=truth,
        displacement=Displacement(displacement, fixed_grid),
        poses={k: truth.bone_pose(k) for k in truth.poses},
        fixed_bones=bones,
        fixed_body=Labels(body[None], fixed_grid, {1: "body"}),
        settings=settings,
        parameters=parameters,
    )


def _seen_through(scan: Image, offset: np.ndarray) -> Image:
    """The same voxels in the world of another scanner."""
    return replace(scan, grid=Grid(scan.grid.shape, offset @ scan.grid.affine))


AXES = {
    "sagittal": ((0, 0, -1), (0, -1, 0), (-1, 0, 0)),
    "coronal": ((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "axial": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
}
"""Directions of the MR's two in-plane axes and of its slabs, RAS."""


def _fixed_grid(settings: Settings, view: View, parameters: Parameters) -> Grid:
    tilt = Rotation.from_euler("xyz", parameters.tilt_deg, degrees=True).as_matrix()
    axes = np.array(AXES[settings.orientation], dtype=np.float64).T
    size = np.abs(axes.T) @ np.array(view.size_mm)
    return _grid(tilt @ axes, np.array(settings.fixed_mm), size, np.array(view.centre_mm))


def _moving_grid(settings: Settings, view: View, offset: np.ndarray) -> Grid:
    """Axial, LPS, about the same tissue as the fixed grid."""
    centre = offset[:3, :3] @ np.array(view.centre_mm) + offset[:3, 3]
    return _grid(np.diag([-1.0, -1.0, 1.0]), np.array(settings.moving_mm), np.array(view.size_mm) + MOVING_MARGIN_MM, centre)


def _grid(axes: np.ndarray, spacing: np.ndarray, size: np.ndarray, centre_mm: np.ndarray) -> Grid:
    shape = np.round(size / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
