"""Registrations without a network, by SimpleITK: affine, then B-spline or demons. Seeded, one choice of parameters."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomokit.errors import TomokitError
from tomokit.registration.displacements import read_displacement
from tomokit.rivals.cases import normalise_intensity
from tomokit.volumes import Volume, itk_image

RIVALS = ("affine", "bspline", "demons")
SEED = 1
SAMPLED = 0.25  # share of the voxels that the affine's metric looks at
# chosen on training pairs of the hippocampus set (docs/experiments.md)
KNOTS_MM = 8.0  # distance of the B-spline's control points
DEMONS_STEPS, DEMONS_SIGMA_MM = 60, 1.5


def register(fixed: Volume, moving: Volume, method: str) -> NDArray[np.float32]:
    """Return the displacement (3, X, Y, Z) in mm (RAS) on the fixed volume's grid that SimpleITK finds.

    Args:
        fixed: the volume that stays.
        moving: the one that is brought onto it.
        method: "affine"; "bspline" or "demons", which start from the affine.

    Raises:
        TomokitError: when there is no such method.
    Source: Mattes et al., IEEE Transactions on Medical Imaging 22 (2003); Rueckert et al., ibid. 18 (1999); Vercauteren
        et al., Diffeomorphic demons, NeuroImage 45 (2009).
    """
    if method not in RIVALS:
        raise TomokitError(f"a registration without a network must be one of {', '.join(RIVALS)}, got {method!r}")
    import SimpleITK as sitk

    still, moved = (
        itk_image(normalise_intensity(np.asarray(own.array, np.float32)), own.affine) for own in (fixed, moving)
    )
    transform = _affine(sitk, still, moved)
    if method == "bspline":
        transform = _bspline(sitk, still, moved, transform)
    if method == "demons":
        transform = _demons(sitk, still, moved, transform)
    return read_displacement(transform, np.asarray(fixed.array).shape, fixed.affine)


def _affine(sitk: Any, fixed: Any, moving: Any) -> Any:
    """Return an affine transform that starts from the volumes' centres."""
    centred = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetNumberOfThreads(1)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SAMPLED, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    method.SetInitialTransform(centred, inPlace=False)
    return method.Execute(fixed, moving)


def _bspline(sitk: Any, fixed: Any, moving: Any, affine: Any) -> Any:
    """Return the affine transform behind a B-spline's."""
    extents = [size * edge for size, edge in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)]
    knots = [max(2, round(extent / KNOTS_MM)) for extent in extents]
    spline = sitk.BSplineTransformInitializer(fixed, knots, order=3)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetNumberOfThreads(1)  # sums of several come out a little different each time
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsLBFGS2(numberOfIterations=40)
    method.SetMovingInitialTransform(affine)
    method.SetInitialTransform(spline, inPlace=False)
    return sitk.CompositeTransform([affine, method.Execute(fixed, moving)])


def _demons(sitk: Any, fixed: Any, moving: Any, affine: Any) -> Any:
    """Return the affine transform behind a diffeomorphic demons'."""
    moved = sitk.Resample(moving, fixed, affine, sitk.sitkLinear, 0.0)
    whole = sitk.Cast(moving * 0 + 1, sitk.sitkUInt8)
    seen = sitk.Resample(whole, fixed, affine, sitk.sitkNearestNeighbor, 0.0)
    filled = sitk.Mask(moved, seen) + sitk.Mask(fixed, seen == 0)  # nothing pulls where the moving scan ends
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfThreads(1)  # several add up in an order of their own
    demons.SetNumberOfIterations(DEMONS_STEPS)
    demons.SetStandardDeviations([DEMONS_SIGMA_MM / edge for edge in fixed.GetSpacing()])
    field = demons.Execute(fixed, filled)
    return sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))])
