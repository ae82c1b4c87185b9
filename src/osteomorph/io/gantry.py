"""Slices of a tilted gantry: each lies beside the one before, and is shifted within its plane to stand upright on it."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Shaped
from scipy import ndimage

LEAST_VOXELS = 0.1
"""Shift over the whole stack up to which headers are taken to round."""

LARGEST_DEG = 45.0


@final
@dataclass(frozen=True)
class Tilt:
    """shift: voxels along both axes of a slice by which each slice lies beside the one before. angle_deg: the gantry's."""

    shift: tuple[float, float]
    angle_deg: float

    @classmethod
    def of(cls, columns_mm: Float64[np.ndarray, "3 3"], slices: int) -> "Tilt | None":
        """Of a stack whose axes are the columns, mm per voxel, the third from slice to slice; None where it stands upright."""
        normal = np.cross(columns_mm[:, 0], columns_mm[:, 1])
        normal /= np.linalg.norm(normal)
        step = columns_mm[:, 2]
        beside = [float(step @ axis / (axis @ axis)) for axis in columns_mm[:, :2].T]
        if max(map(abs, beside)) * (slices - 1) <= LEAST_VOXELS:
            return None
        along = abs(float(step @ normal))
        angle = np.degrees(np.arctan2(np.sqrt(max(0.0, float(step @ step) - along**2)), along))
        return cls((beside[0], beside[1]), float(angle))

    def room(self, slices: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Voxels that the slices of the upright volume have before those of the first slice, and after them."""
        ends = [shift * (slices - 1) for shift in self.shift]
        before, after = (tuple(int(np.ceil(max(0.0, sign * end) - 1e-6)) for end in ends) for sign in (-1, 1))
        return (before[0], before[1]), (after[0], after[1])

    def upright(
        self, affine: Float64[np.ndarray, "4 4"], shape: tuple[int, int, int]
    ) -> tuple[Float64[np.ndarray, "4 4"], tuple[int, int, int]]:
        """Affine and shape of the upright volume: the slices' axes, and their normal. affine: of the stack."""
        before, after = self.room(shape[2])
        out = affine.copy()
        out[:3, 2] -= affine[:3, :2] @ self.shift
        out[:3, 3] -= affine[:3, :2] @ before
        return out, (shape[0] + before[0] + after[0], shape[1] + before[1] + after[1], shape[2])

    def corrected(self, stack: Shaped[np.ndarray, "i j k"]) -> Shaped[np.ndarray, "i2 j2 k"]:
        """The upright volume's voxels, interpolated linearly within slices; beyond a slice the stack's least value."""
        before, after = self.room(stack.shape[2])
        low = stack.min()
        shape = (stack.shape[0] + before[0] + after[0], stack.shape[1] + before[1] + after[1], stack.shape[2])
        out = np.empty(shape, stack.dtype)
        for k in range(stack.shape[2]):
            back = [b + k * shift for b, shift in zip(before, self.shift, strict=True)]
            found = ndimage.affine_transform(
                stack[:, :, k].astype(np.float32),
                np.ones(2),
                -np.array(back),
                shape[:2],
                order=1,
                mode="grid-constant",
                cval=low,
            )
            out[:, :, k] = np.rint(found) if stack.dtype.kind in "iu" else found
        return out
