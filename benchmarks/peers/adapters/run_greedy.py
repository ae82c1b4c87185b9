"""greedy (Yushkevich et al.): diffeomorphic registration on normalised mutual information."""

import numpy as np
import SimpleITK as sitk
from adapter import Run
from picsl_greedy import Greedy3D

SETTINGS = "-m NMI -n 100x60x30 -s 2vox 0.7vox"


def main():
    run = Run("nmi")
    fixed, moving = (sitk.ReadImage(name, sitk.sitkFloat32) for name in (run.fixed, run.moving))
    greedy = Greedy3D()
    with run:
        command = f"-i fixed moving {SETTINGS} -o warp -oinv back -threads {run.threads}"
        greedy.execute(command, fixed=fixed, moving=moving, warp=None, back=None)
    there, back = (np.transpose(sitk.GetArrayFromImage(greedy[name]), (2, 1, 0, 3)) for name in ("warp", "back"))
    run.write(there, "LPS", {"arguments": SETTINGS}, ("picsl_greedy",), inverse=back, inverse_on="fixed")


main()
