"""A lumbar spine in CT and MR with the exact transform between them, from a seed.

Both images are drawn from implicit functions: the CT at its own voxels, the MR at the moved positions of its voxels. No
image is resampled, so that the MR is as sharp as the CT and labels are exact in both.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.simulate import contrast, motion
from osteomorph.simulate.anatomy import BONES, NAMES, Anatomy, Build
from osteomorph.threads import threads

LEAST_GAP_MM = 1.5
"""Between two bones of the fixed image; draws that come closer are drawn again."""

LEAST_DETERMINANT = 0.1
"""Of the true transform's Jacobian; draws below are drawn again."""

DRAWS = 200
"""Attempts at a pair before motion is called too large."""

CENTRE_MM = np.array([0.0, -21.0, 0.0])
"""Middle of the fixed field of view, about the spinal canal of L4."""


@final
@dataclass(frozen=True)
class Parameters:
    """All that is random in a pair. Lists follow the bones from the sacrum up; lengths in mm, rotation vectors in degrees."""

    seed: int
    attempt: int
    build: Build
    rotations_deg: tuple[tuple[float, ...], ...]
    shifts_mm: tuple[tuple[float, ...], ...]
    offset_rotation_deg: tuple[float, ...]
    offset_shift_mm: tuple[float, ...]
    soft_mm: float
    bias: tuple[float, ...]
    seeds: tuple[int, ...]


@final
@dataclass(frozen=True, eq=False)
class SimulatedPair:
    """fixed(x) shows what moving(truth(x)) shows.

    case: fixed MR and moving CT (HU), each with its labels.
    truth: fixed mm -> moving mm, exact; rigid in every bone.
    poses: bone id -> (4, 4) fixed mm -> moving mm, RAS; ids 21 (L2) and 25 (S1) are bones that carry no label.
    fixed_body: 1 inside the skin, on the fixed grid.
    """

    case: Case
    truth: motion.Articulated
    poses: dict[int, np.ndarray]
    fixed_body: Labels
    parameters: Parameters


def phantom(
    seed: int = 0,
    spacing_mm: float = 1.5,
    size_mm: tuple[float, float, float] = (144.0, 136.0, 140.0),
    angle_deg: float = 3.0,
    shift_mm: float = 1.0,
    soft_mm: float = 5.0,
    offset_deg: float = 4.0,
    offset_mm: float = 6.0,
) -> SimulatedPair:
    """A pair from a seed: fixed sagittal oblique MR, moving LPS CT on another grid.

    spacing_mm: of a voxel with the same volume as the fixed image's; the grids themselves are anisotropic.
    size_mm: fixed field of view, right-left, back-front, down-up.
    angle_deg, shift_mm: largest motion of a vertebra against the one below, per axis.
    soft_mm: motion of soft tissue beside that which bones impose (99th percentile).
    offset_deg, offset_mm: between the two scanners, about and along a random axis.
    """
    around = _fixed_grid(3.5, size_mm).points(torch.float64).flatten(1)
    with threads(1):  # steps here are many and short
        for attempt in range(DRAWS):
            parameters = _draw(seed, attempt, angle_deg, shift_mm, soft_mm, offset_deg, offset_mm)
            anatomy = Anatomy(parameters.build)
            upward = motion.chain(anatomy, np.array(parameters.rotations_deg), np.array(parameters.shifts_mm))
            poses = {label: np.linalg.inv(pose) for label, pose in upward.items()}
            joints = motion.near_joints(anatomy, poses, around)
            if motion.joint_gap_mm(anatomy, poses, joints) < LEAST_GAP_MM:
                continue
            truth = _transform(parameters, anatomy, poses, size_mm)
            if all(motion.least_determinant(truth, points) > LEAST_DETERMINANT for points in (joints, around)):
                grids = _fixed_grid(spacing_mm, size_mm), _moving_grid(spacing_mm, size_mm, truth.offset)
                return _render(parameters, anatomy, truth, *grids)
    raise ValueError(f"No phantom without folds or colliding bones in {DRAWS} draws of seed {seed}; ask for less motion.")


def tiny(seed: int = 0) -> SimulatedPair:
    """The phantom at 3 mm, for tests."""
    return phantom(seed, spacing_mm=3.0)


def save(pair: SimulatedPair, folder: Path) -> None:
    """Writes a pair as files: images, labels, body, true displacement, and pair.json with what was drawn and every pose."""
    from osteomorph import io

    folder.mkdir(parents=True, exist_ok=True)
    case = pair.case
    assert case.fixed_labels is not None
    assert case.moving_labels is not None
    io.write_image(folder / "fixed.nii.gz", case.fixed)
    io.write_image(folder / "moving.nii.gz", case.moving)
    io.write_image(folder / "fixed_labels.nii.gz", case.fixed_labels)
    io.write_image(folder / "moving_labels.nii.gz", case.moving_labels)
    io.write_image(folder / "fixed_body.nii.gz", pair.fixed_body)
    io.write_displacement(folder / "displacement.nii.gz", pair.truth, case.fixed.grid)
    text = json.dumps(record(pair), indent=1)
    (folder / "pair.json").write_text(text + "\n", encoding="utf-8")


def record(pair: SimulatedPair) -> dict[str, Any]:
    """Seed, drawn parameters and the 4x4 of every bone (fixed mm -> moving mm, RAS), fit for JSON."""
    bones = [
        {"label": k, "name": NAMES.get(k, {21: "L2", 25: "S1"}.get(k, str(k))), "labelled": k in NAMES, "matrix": pose.tolist()}
        for k, pose in sorted(pair.poses.items())
    ]
    return {"kind": "phantom", "frame": "RAS mm, fixed -> moving", "parameters": asdict(pair.parameters), "bones": bones}


# -- drawn here, applied below ------------------------------------------------------------------------------------------------
def _draw(seed: int, attempt: int, angle: float, shift: float, soft: float, offset_deg: float, offset_mm: float) -> Parameters:
    generator = np.random.default_rng((seed, attempt))

    def between(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    build = Build(
        half_width=between(21.5, 24.5),
        half_depth=between(15.5, 17.5),
        half_height=between(13.0, 14.5),
        disc=between(9.0, 11.0),
        lordosis_deg=between(22.0, 32.0),
        process=between(0.85, 1.05),
        fat=between(7.0, 13.0),
    )
    rotations = generator.uniform(-angle, angle, (len(BONES), 3)) * (1.0, 0.7, 0.7)  # mostly bending forward and back
    shifts = generator.uniform(-shift, shift, (len(BONES), 3))
    rotations[0] *= 0.5
    turn, move = (axis / np.linalg.norm(axis) for axis in generator.standard_normal((2, 3)))
    return Parameters(
        seed=seed,
        attempt=attempt,
        build=build,
        rotations_deg=tuple(tuple(row) for row in rotations.tolist()),
        shifts_mm=tuple(tuple(row) for row in shifts.tolist()),
        offset_rotation_deg=tuple((turn * offset_deg).tolist()),
        offset_shift_mm=tuple((move * offset_mm).tolist()),
        soft_mm=soft * between(0.7, 1.0),
        bias=tuple(generator.uniform(-0.12, 0.12, 9).tolist()),
        seeds=tuple(int(s) for s in generator.integers(0, 2**31, 4)),
    )


def _fixed_grid(spacing_mm: float, size_mm: tuple[float, float, float]) -> Grid:
    """Sagittal slabs: axes run down, back and to the left, a few degrees oblique."""
    right, front, up = size_mm
    tilt = Rotation.from_euler("xyz", (5.0, -3.0, 4.0), degrees=True).as_matrix()
    axes = tilt @ np.array([(0, 0, -1), (0, -1, 0), (-1, 0, 0)], dtype=np.float64).T
    return _grid(axes, spacing_mm * np.array([0.9, 0.9, 1.25]), np.array([up, front, right]), CENTRE_MM)


def _moving_grid(spacing_mm: float, size_mm: tuple[float, float, float], offset: np.ndarray) -> Grid:
    """Axial, LPS, about the same tissue as the fixed grid and larger by 16 mm."""
    centre = offset[:3, :3] @ CENTRE_MM + offset[:3, 3]
    return _grid(np.diag([-1.0, -1.0, 1.0]), spacing_mm * np.array([0.85, 0.85, 1.3]), np.array(size_mm) + 16.0, centre)


def _grid(axes: np.ndarray, spacing: np.ndarray, size: np.ndarray, centre_mm: np.ndarray) -> Grid:
    shape = np.round(size / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _transform(
    parameters: Parameters, anatomy: Anatomy, poses: dict[int, np.ndarray], size_mm: tuple[float, float, float]
) -> motion.Articulated:
    lattice = _fixed_grid(motion.LATTICE_MM, size_mm).padded((3, 3, 3))  # the same for every voxel size
    noise = np.random.default_rng(parameters.seeds[0]).standard_normal((3, *lattice.shape))
    force = np.stack([ndimage.gaussian_filter(n, 3.0) for n in noise])
    coefficients = motion.soft_field(anatomy, poses, lattice, force, parameters.soft_mm)
    offset = motion.rigid_about(CENTRE_MM, np.array(parameters.offset_rotation_deg), np.array(parameters.offset_shift_mm))
    return motion.Articulated(anatomy, poses, offset, coefficients, lattice)


def _render(
    parameters: Parameters, anatomy: Anatomy, truth: motion.Articulated, fixed_grid: Grid, moving_grid: Grid
) -> SimulatedPair:
    textures = contrast.texture(parameters.seeds[1])
    fixed_at = truth.to_anatomy(fixed_grid.points(torch.float64).flatten(1))
    back = torch.as_tensor(np.linalg.inv(truth.offset))
    moving_at = back[:3, :3] @ moving_grid.points(torch.float64).flatten(1) + back[:3, 3, None]
    fixed_edge, moving_edge = (float(grid.spacing_mm.mean()) for grid in (fixed_grid, moving_grid))
    mr = contrast.render(anatomy, fixed_at, fixed_edge, textures, "mr").unflatten(0, fixed_grid.shape)
    ct = contrast.render(anatomy, moving_at, moving_edge, textures, "ct").unflatten(0, moving_grid.shape)
    mr = contrast.mr_noise(mr, np.array(parameters.bias), 14.0, parameters.seeds[2])
    ct = contrast.ct_noise(ct, 16.0, parameters.seeds[3])
    body = (anatomy.body(fixed_at) < 0).to(torch.int16).unflatten(0, fixed_grid.shape)[None]
    case = Case(
        Image(mr.round()[None], fixed_grid, np.dtype(np.int16)),
        Image(ct.round()[None], moving_grid, np.dtype(np.int16)),
        _labels(anatomy, fixed_at, fixed_grid),
        _labels(anatomy, moving_at, moving_grid),
    )
    return SimulatedPair(case, truth, {k: truth.bone_pose(k) for k in BONES}, Labels(body, fixed_grid, {1: "body"}), parameters)


def _labels(anatomy: Anatomy, points: Tensor, grid: Grid) -> Labels:
    data = torch.zeros(grid.voxels, dtype=torch.int16)
    for label in NAMES:
        data[anatomy.bone(label, points, 1.0) < 0] = label
    return Labels(data.unflatten(0, grid.shape)[None], grid, dict(NAMES))
