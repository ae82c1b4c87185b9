"""ConvexAdam (Siebert, Hansen and Heinrich) on MIND, with its defaults.

It compares voxel with voxel, so the moving image is put on the fixed grid first; what lies beyond is not seen.
"""

import numpy as np
import SimpleITK as sitk
import torch
from adapter import Run
from convexAdam.convex_adam_MIND import convex_adam_pt


def main():
    run = Run("mind")
    torch.set_num_threads(run.threads)
    torch.manual_seed(0)
    fixed, moving = (sitk.ReadImage(name, sitk.sitkFloat32) for name in (run.fixed, run.moving))
    with run:
        least = float(np.min(sitk.GetArrayViewFromImage(moving)))
        onto = sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkLinear, least)
        arrays = [torch.from_numpy(np.transpose(sitk.GetArrayFromImage(image), (2, 1, 0)).copy()) for image in (fixed, onto)]
        field = convex_adam_pt(*arrays, dtype=torch.float32, device=torch.device("cpu"))
    run.write(np.asarray(field), "voxels", {"all": "defaults"}, ("convexAdam", "torch"))


main()
