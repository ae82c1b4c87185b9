"""A rigid start on labels by elastix (Klein et al., 2010), as in the thesis: the program on the PATH, or the Python package."""

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from osteomorph.case import Case
from osteomorph.errors import InputError, StartError
from osteomorph.image import Labels
from osteomorph.io.itk import FLIP, write_voxels
from osteomorph.start_labels import Found, boxed, judged, shapes
from osteomorph.transforms import Rigid

MARGIN_MM = 25.0
"""Background around the labels; elastix leaves samples outside the moving image out of the metric."""

PARAMETERS = {
    "Registration": "MultiResolutionRegistration",
    "FixedImagePyramid": "FixedSmoothingImagePyramid",
    "MovingImagePyramid": "MovingSmoothingImagePyramid",
    "Interpolator": "LinearInterpolator",
    "ResampleInterpolator": "FinalBSplineInterpolator",
    "Resampler": "DefaultResampler",
    "Metric": "AdvancedMeanSquares",
    "Optimizer": "AdaptiveStochasticGradientDescent",
    "Transform": "EulerTransform",
    "AutomaticScalesEstimation": "true",
    "AutomaticTransformInitialization": "true",
    "AutomaticTransformInitializationMethod": "CenterOfGravity",
    "NumberOfResolutions": "3",
    "MaximumNumberOfIterations": "300",
    "ImageSampler": "RandomCoordinate",
    "NewSamplesEveryIteration": "true",
    "NumberOfSpatialSamples": "4000",
    "FixedInternalImagePixelType": "float",
    "MovingInternalImagePixelType": "float",
    "FixedImageDimension": "3",
    "MovingImageDimension": "3",
    "HowToCombineTransforms": "Compose",
    "ErodeMask": "false",
    "WriteResultImage": "false",
}


def start_with_elastix(case: Case, ids: list[int]) -> Found:
    """Rigid, method, mean symmetric surface distance in mm, warnings: the labels together, by their mean squared difference.

    Raises InputError when neither program nor package is there, StartError when elastix fails or its result does not fit.
    """
    fixed, moving = shapes(case, ids)
    if case.fixed_labels is None or case.moving_labels is None:
        raise ValueError("A start on labels needs labels on both sides.")
    with TemporaryDirectory(prefix="osteomorph-") as name:
        folder = Path(name)
        _write(folder / "fixed.mha", case.fixed_labels, ids)
        _write(folder / "moving.mha", case.moving_labels, ids)
        if program := shutil.which("elastix"):
            found = _by_program(program, folder)
        elif has_package():
            found = _by_package(folder)
        else:
            raise InputError(
                'elastix is not installed. Get it with `pip install "osteomorph[elastix]"`, put the `elastix` program on the '
                "PATH, or start with the backend core."
            )
    return judged(fixed, moving, ids, euler(found), "labels (elastix)")


def has_package() -> bool:
    """Whether itk-elastix is installed; importing it takes many seconds."""
    return any(True for _ in importlib.metadata.distributions(name="itk-elastix"))


def euler(parameters: dict[str, list[str]]) -> Rigid:
    """What an elastix EulerTransform says, in RAS: angles about x, y, z, then a translation, about a centre (LPS mm)."""
    before = [name for key, names in parameters.items() if key.startswith("InitialTransformParameter") for name in names]
    if parameters["Transform"] != ["EulerTransform"] or before != ["NoInitialTransform"]:
        raise ValueError(f"Only a lone EulerTransform is read, not {parameters['Transform']} after {before}.")
    angles_and_shift = [float(v) for v in parameters["TransformParameters"]]
    transform = sitk.Euler3DTransform()
    transform.SetComputeZYX(parameters.get("ComputeZYX", ["false"]) == ["true"])
    transform.SetCenter([float(v) for v in parameters["CenterOfRotationPoint"]])
    transform.SetRotation(*angles_and_shift[:3])
    transform.SetTranslation(angles_and_shift[3:])
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return Rigid(FLIP @ matrix @ FLIP)


def _write(path: Path, labels: Labels, ids: list[int]) -> None:
    """The labels as one, 1 in 0, with background around."""
    mask = labels.mask(ids)[0].numpy()
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    around, grid = boxed(mask[box], labels.grid, box, MARGIN_MM)
    write_voxels(path, around.astype(np.float32), grid)


def _by_program(program: str, folder: Path) -> dict[str, list[str]]:
    settings = folder / "parameters.txt"
    settings.write_text("".join(f"({key} {_quoted(value)})\n" for key, value in PARAMETERS.items()), encoding="ascii")
    files = ["-f", str(folder / "fixed.mha"), "-m", str(folder / "moving.mha"), "-out", str(folder), "-p", str(settings)]
    command = [program, *files, "-threads", str(torch.get_num_threads())]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    result = folder / "TransformParameters.0.txt"
    if run.returncode != 0 or not result.exists():
        raise _failed(run.stdout + run.stderr)
    return {key: _words(rest) for key, rest in re.findall(r"^\((\w+) (.*)\)\s*$", result.read_text(encoding="utf-8"), re.M)}


def _by_package(folder: Path) -> dict[str, list[str]]:
    import itk

    parameters = itk.ParameterObject.New()
    parameters.AddParameterMap({key: [value] for key, value in PARAMETERS.items()})
    fixed, moving = (itk.imread(str(folder / name), itk.F) for name in ("fixed.mha", "moving.mha"))
    try:
        _, result = itk.elastix_registration_method(fixed, moving, parameter_object=parameters, log_to_console=False)
    except RuntimeError as error:
        raise _failed(str(error)) from None
    return {key: list(value) for key, value in result.GetParameterMap(0).items()}


def _failed(said: str) -> StartError:
    """With the line of its log that says most."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("Description:")), lines[-1] if lines else "it said nothing")
    return StartError(f"elastix failed ({reason}). Start with the backend core, or give an initial transform.")


def _quoted(value: str) -> str:
    return value if value.isdigit() else f'"{value}"'


def _words(text: str) -> list[str]:
    return [word.strip('"') for word in text.split()]
