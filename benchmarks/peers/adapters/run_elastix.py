"""elastix through itk-elastix: B-splines and Mattes' mutual information; alone, with bending energy, with the rigidity penalty.

mi, bending: 8 mm grid, 4 resolutions, 5000 random samples, 300/300/300/1200 iterations; bending energy with weight 20.
rigidity: Staring's penalty on the moving bones, as Jian et al. (MICCAI 2022) set elastix for CT and MR of the spine: 64 bins,
65 536 samples, 8 mm grid, 3 resolutions of 500 iterations, mutual information : penalty 0.1 : 0.5, orthonormality and
properness 0.1 each, linearity off, the rigidity image of the moving labels. On our pairs it stops in its last resolution: too
many samples map outside the moving image.
light, heavy: the same penalty as Staring, Klein and Pluim (Medical Physics 2007) weigh its three conditions (linearity 100,
orthonormality 1, properness 2), otherwise as mi; its weight against mutual information 0.1 throughout, or 4 in the last
resolution, where the rigidity image is also dilated.

`number_of_threads` is not passed: above 1 itk-elastix crashes with several metrics (its issue 160).
"""

import itk
import numpy as np
from adapter import Run

COMMON = {
    "Registration": "MultiMetricMultiResolutionRegistration",
    "FixedImagePyramid": "FixedSmoothingImagePyramid",
    "MovingImagePyramid": "MovingSmoothingImagePyramid",
    "Interpolator": "LinearInterpolator",
    "ResampleInterpolator": "FinalBSplineInterpolator",
    "Resampler": "DefaultResampler",
    "Transform": "BSplineTransform",
    "FinalGridSpacingInPhysicalUnits": "8",
    "HowToCombineTransforms": "Compose",
    "UseDirectionCosines": "true",
    "Optimizer": "AdaptiveStochasticGradientDescent",
    "AutomaticParameterEstimation": "true",
    "ImageSampler": "RandomCoordinate",
    "NewSamplesEveryIteration": "true",
    "MaximumNumberOfSamplingAttempts": "8",
    "RequiredRatioOfValidSamples": "0.05",
    "FixedInternalImagePixelType": "float",
    "MovingInternalImagePixelType": "float",
    "Metric0Weight": "1.0",
    "NumberOfResolutions": "4",
    "MaximumNumberOfIterations": ("300", "300", "300", "1200"),
    "NumberOfSpatialSamples": "5000",
    "NumberOfHistogramBins": "32",
    "WriteResultImage": "false",
    "DefaultPixelValue": "-1000",
}

MATTES = "AdvancedMattesMutualInformation"

VARIANTS = {
    "mi": {"Metric": MATTES},
    "bending": {"Metric": (MATTES, "TransformBendingEnergyPenalty"), "Metric1Weight": "20.0"},
    "rigidity": {
        "Metric": (MATTES, "TransformRigidityPenalty"),
        "Metric0Weight": "0.1",
        "Metric1Weight": "0.5",
        "UseOrthonormalityCondition": "true",
        "UsePropernessCondition": "true",
        "UseLinearityCondition": "false",
        "CalculateOrthonormalityCondition": "true",
        "CalculatePropernessCondition": "true",
        "CalculateLinearityCondition": "false",
        "OrthonormalityConditionWeight": "0.1",
        "PropernessConditionWeight": "0.1",
        "LinearityConditionWeight": "0.0",
        "DilateRigidityImages": "false",
        "NumberOfResolutions": "3",
        "MaximumNumberOfIterations": "500",
        "NumberOfSpatialSamples": "65536",
        "NumberOfHistogramBins": "64",
    },
}

STARING = {
    "Metric": (MATTES, "TransformRigidityPenalty"),
    "LinearityConditionWeight": "100.0",
    "OrthonormalityConditionWeight": "1.0",
    "PropernessConditionWeight": "2.0",
    **{f"{do}{name}Condition": "true" for do in ("Use", "Calculate") for name in ("Linearity", "Orthonormality", "Properness")},
    "DilationRadiusMultiplier": "1.0",
}
VARIANTS["light"] = STARING | {"Metric1Weight": "0.1", "DilateRigidityImages": "false"}
VARIANTS["heavy"] = STARING | {
    "Metric1Weight": ("0.1", "0.1", "0.1", "4.0"),
    "DilateRigidityImages": ("false", "false", "false", "true"),
}
PENALISED = ("rigidity", "light", "heavy")


def rigid_image(labels, out):
    """1 in the moving bones, 0 elsewhere: elastix takes it by the name of its file."""
    read = itk.imread(labels, itk.SS)
    bones = itk.image_from_array((itk.array_from_image(read) > 0).astype(np.float32))
    bones.CopyInformation(read)
    itk.imwrite(bones, out)


def main():
    run = Run(*VARIANTS)
    settings = COMMON | VARIANTS[run.variant]
    files = {}
    if run.variant in PENALISED:
        files["MovingRigidityImageName"] = str(run.out / "rigidity.mha")
        rigid_image(str(run.labels), files["MovingRigidityImageName"])
    parameters = itk.ParameterObject.New()
    given = settings | files
    parameters.AddParameterMap({key: [value] if isinstance(value, str) else list(value) for key, value in given.items()})
    fixed, moving = (itk.imread(name, itk.F) for name in (run.fixed, run.moving))
    with run:
        _, found = itk.elastix_registration_method(
            fixed, moving, parameter_object=parameters, log_to_console=False, log_to_file=True, output_directory=str(run.out)
        )
        field = itk.transformix_deformation_field(moving, found, output_directory=str(run.out))
    vectors = np.transpose(itk.array_from_image(field), (2, 1, 0, 3))
    run.write(vectors, "LPS", settings, ("itk-elastix", "itk"))


main()
