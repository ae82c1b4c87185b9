"""NiftyReg's reg_f3d on normalised mutual information, with its defaults; from the folder NIFTYREG names, or the PATH."""

import os
import shutil
import subprocess

import nibabel
import numpy as np
from adapter import Run


def program(name):
    return shutil.which(name, path=os.pathsep.join([os.environ.get("NIFTYREG", ""), os.environ.get("PATH", "")]))


def main():
    run = Run("nmi")
    points, field, moved = (str(run.out / f"{name}.nii.gz") for name in ("control", "field", "moved"))
    with run:
        command = [program("reg_f3d"), "-ref", run.fixed, "-flo", run.moving, "-cpp", points, "-res", moved]
        subprocess.run(command, check=True)
        subprocess.run([program("reg_transform"), "-ref", run.fixed, "-disp", points, field], check=True)
    vectors = np.squeeze(nibabel.load(field).get_fdata(dtype=np.float32))
    said = subprocess.run([program("reg_f3d"), "--version"], capture_output=True, text=True).stdout.strip()
    run.write(vectors, "RAS", {"all": "defaults", "version": said}, ())


main()
