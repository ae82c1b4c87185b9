"""Plan: every choice of a registration, frozen, one model per stage. Recipes build them; TOML or JSON files hold them."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from osteomorph.errors import InputError


class _Stage(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PreparePlan(_Stage):
    """From files to one canonical case."""

    spacing_mm: float = Field(default=1.0, gt=0)
    """Isotropic spacing images are registered at."""
    most_voxels: int | None = Field(default=None, ge=1)
    """Of the fixed image: where it would have more, the spacing grows until it does not. None keeps the spacing."""
    shape: tuple[int, int, int] | None = None
    """Voxels to crop or pad to, as (anterior-posterior, inferior-superior, left-right); None keeps the field of view."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Intensities that become 0 and 1."""
    clip: bool = True
    """Whether intensities beyond the percentiles are clipped to [0, 1]."""


class InitialisePlan(_Stage):
    """The rigid start."""

    method: Literal["auto", "labels", "images", "none"] = "auto"
    """auto: on labels where both sides have them, else on images."""
    backend: Literal["core", "elastix"] = "core"
    """Who registers labels: this package, or elastix (program on the PATH, or the [elastix] extra)."""
    labels: tuple[int, ...] = ()
    """Ids to start on; empty for all that both sides hold. The thesis starts on L5 alone."""
    spacings_mm: tuple[float, ...] = (8.0, 4.0, 2.0)
    """Resolutions of the start on images, coarse to fine."""
    bins: int = 32
    """Histogram bins of the start on images."""


class Weights(_Stage):
    """Weight of each term in the sum that is minimised; 0 leaves a term out."""

    mutual_information: float = Field(default=0.0, ge=0)
    """Per nat."""
    mind: float = Field(default=0.0, ge=0)
    """Per mean squared difference of MIND-SSC channels."""
    dice: float = Field(default=0.0, ge=0)
    """Per unit of 1 - Dice, where both sides have labels."""
    diffusion: float = Field(default=0.0, ge=0)
    """Per unit of the mean squared gradient of u."""
    bending: float = Field(default=0.0, ge=0)
    """Per 1/mm^2 of bending energy."""
    rigidity: float = Field(default=0.0, ge=0)
    """Per unit of the rigidity penalty, inside bones."""


class Level(_Stage):
    """One pass of the optimiser."""

    control_mm: float = Field(gt=0)
    """Spacing of the cubic B-spline control points; at or below the field's spacing every voxel is free."""
    iterations: int = Field(ge=0)
    """Steps of Adam."""
    step_mm: float = Field(gt=0)
    """Step length at the start of the level; it decays to a fifth."""
    samples: int = Field(default=40_000, ge=1)
    """About how many voxels are looked at: a lattice, from a new offset each iteration."""
    smooth_mm: float = Field(default=0.0, ge=0)
    """Gaussian smoothing of both images before this level."""
    bending_factor: float = Field(default=1.0, ge=0)
    """Multiplies the bending weight."""
    mind_factor: float = Field(default=1.0, ge=0)
    """Multiplies MIND's weight; 0 leaves MIND out of this level, which is then much quicker."""


class RefinePlan(_Stage):
    """Instance optimisation of the soft field."""

    field: Literal["displacement", "velocity"] = "displacement"
    """What is optimised: u itself, or a stationary velocity whose flow is x + u."""
    field_spacing_mm: float = Field(default=2.0, gt=0)
    """Spacing of the field that is optimised, stored and applied; linear in between."""
    levels: tuple[Level, ...] = ()
    """Coarse to fine; none leaves the rigid start as it is."""
    weights: Weights = Weights()
    foreground: bool = True
    """Whether air has no say where no fixed mask is given."""
    bins: int = Field(default=24, ge=4)
    """Histogram bins per image."""
    kernel: Literal["gaussian", "bspline"] = "gaussian"
    """Parzen window of the mutual information."""
    rigid_frame: Literal["auto", "fixed", "warped", "moving", "both"] = "auto"
    """Labels that say where bone is: auto takes what there is, the moving ones pulled back by the current warp."""


class DiscreteLevel(_Stage):
    """One resolution of the search over displacements."""

    features: Literal["mind", "network"] = "mind"
    """What is compared: MIND-SSC, the moving image described anew under what is known by then, or the shipped network's."""
    spacing_mm: float = Field(gt=0)
    """Spacing of the lattice that features are compared on; also the step between two displacements."""
    stride: int = Field(default=2, ge=1)
    """Lattice voxels between two nodes, which each have a displacement."""
    reach_mm: float = Field(gt=0)
    """Largest displacement along each axis."""
    rigid: bool = False
    """Whether the next level begins from the rigid motion nearest to the field instead of the field itself: what turns is then
    described anew under its rotation."""
    both_ways: bool = True
    """Whether the moving image is searched for the fixed one's nodes too, and both fields made each other's inverse."""


class DiscretePlan(_Stage):
    """A wide search for a smooth field, before anything is optimised."""

    levels: tuple[DiscreteLevel, ...] = ()
    """Coarse to fine, each from the field of the one before; none leaves the search out."""
    coupling: tuple[float, ...] = Field(default=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0), min_length=1)
    """How strongly a node's displacement is held to the smooth field, round by round: standard deviations of a typical node's
    costs per squared voxel of the lattice."""
    smooth_nodes: float = Field(default=2.0, ge=0)
    """Standard deviation of the Gaussian that smooths displacements, in nodes."""


class PosePlan(_Stage):
    """Six degrees of freedom per bone from the images."""

    spacings_mm: tuple[float, ...] = Field(default=(3.0, 2.0, 1.0), min_length=1)
    """Resolutions, coarse to fine."""
    shell_mm: float = Field(default=4.0, ge=0)
    """What is looked at around a bone at the finest resolution, at most to the middle of the gap to the next one; wider in
    proportion at coarser ones."""
    search_mm: float = Field(default=16.0, ge=0)
    """Shifts tried along each axis at the coarsest resolution; 0 trusts the start."""
    search_deg: float = Field(default=12.0, ge=0)
    """Rotations tried there."""
    points: int = Field(default=10_000, ge=100)
    """At most that many voxels of a bone and its shell are compared."""
    extractions: int = Field(default=4, ge=1)
    """Times per resolution that the moving image is described anew under the current pose."""
    iterations: int = Field(default=3, ge=0)
    """Gauss-Newton steps between two of them; with none poses are judged and kept."""
    largest_sd_mm: float = Field(default=0.5, gt=0)
    """Standard deviation of a bone's points under any rotation or shift from which on it counts as not determined."""


class NewtonLevel(_Stage):
    """Gauss-Newton steps at one resolution, the moving image described anew for each."""

    steps: int = Field(default=3, ge=1)
    spacing_mm: float = Field(default=2.0, gt=0)
    """Of the lattice that descriptions (MIND-SSC) are compared on."""
    control_mm: float = Field(default=20.0, gt=0)
    """Between control points of a step's B-spline."""
    bending: float = Field(default=20.0, gt=0)
    """Weight of the mean squared second derivatives of a step (1/mm^2) against the mean squared difference of features."""


class SoftPlan(_Stage):
    """The soft field around exact bones."""

    field: Literal["displacement", "velocity"] = "displacement"
    """What is optimised: u itself (kept as a velocity where it comes near to folding), or a stationary velocity."""
    ramp_mm: float = Field(default=14.0, gt=0)
    """Distance from bone over which the field comes in."""
    lattice_mm: float = Field(default=4.0, gt=0)
    """Spacing of the voxels that are looked at; the lattice takes a new offset each iteration."""
    begin: Literal["still", "guess"] = "still"
    """Where the field begins: with the bones' motion alone, or with what the dense guess moves besides."""
    agree_mm: float = Field(default=0.0, ge=0)
    """Distance within which the field and what the dense guess moves besides are taken to agree: there the result is the mean
    of both, unless the images are less alike under the guess. 0 leaves the guess out."""
    newton: tuple[NewtonLevel, ...] = ()
    """Steps by which what the dense guess moves besides is refined before the field begins with it, or is averaged with it."""
    around: Literal["bone", "margin"] = "bone"
    """What holds it at 0, with the voxels around: bone alone, or the margin that moves along with it too. Bones found in an MR,
    whose rims may be missed, are held by their margin whatever is said here."""
    gain_mm: float = Field(default=0.0, ge=0)
    """Standard deviation of the Gaussian that tells the gain of an MR's coil, which is taken out before images are compared,
    from anatomy; 0 leaves it in."""
    levels: tuple[Level, ...] = ()
    """Coarse to fine; ``samples`` has no say here."""
    weights: Weights = Weights()
    bins: int = Field(default=32, ge=4)
    """Histogram bins per image."""
    kernel: Literal["gaussian", "bspline"] = "gaussian"
    """Parzen window of the mutual information."""


class NetworkPlan(_Stage):
    """The network that predicts a field from two images."""

    kind: Literal["literal", "deepreg"] = "literal"
    """literal: two convolutions per block, as the thesis is written; deepreg: one and a residual pair, as in its framework."""
    channels: int = Field(default=4, ge=1)
    """Filters of the first block; each of the three below has twice as many as the one above."""
    norm: Literal["batch", "group"] = "batch"
    """batch: statistics of the one pair in training, their running mean in use; group: of the pair itself, always."""


class TrainPlan(_Stage):
    """How the network is trained."""

    epochs: int = Field(default=1000, ge=1)
    """Passes over the training pairs, one pair a step."""
    learning_rate: float = Field(default=4e-4, gt=0)
    """Of Adam."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's first and second moments."""
    validate_every: int = Field(default=1, ge=1)
    """Epochs between two validations; the last epoch is always validated."""
    bf16: bool = False
    """Whether the network's layers compute in bfloat16; weights, fields and losses stay in float32."""
    channels_last: bool = True
    """Whether a voxel's channels lie side by side in memory."""
    checkpointing: bool = False
    """Whether blocks are computed again on the way back instead of being kept: less memory, a third more time."""


class Plan(_Stage):
    """Everything that decides a result besides the files."""

    name: str = "default"
    prepare: PreparePlan = PreparePlan()
    initialise: InitialisePlan = InitialisePlan()
    bones: Literal["exact", "penalty"] = "penalty"
    """How bones are held: one rigid motion each, or by the rigidity penalty's weight."""
    refine: RefinePlan = RefinePlan()
    """The field where bones are not exact."""
    discrete: DiscretePlan = DiscretePlan()
    """The search for the field from which exact bones' first poses are read."""
    guess: RefinePlan = RefinePlan()
    """Its optimisation after that; without levels the search alone decides."""
    guess_mm: float = Field(default=2.0, gt=0)
    """Spacing of the images of that optimisation, and of the points at which first poses are read."""
    pose: PosePlan = PosePlan()
    soft: SoftPlan = SoftPlan()
    network: NetworkPlan = NetworkPlan()
    train: TrainPlan = TrainPlan()
    """Training minimises ``refine.weights``' terms over a cohort."""
    interpolation: Literal["linear", "bspline"] = "bspline"
    """Of the moved image that is written; registration itself interpolates linearly."""
    seed: int = 0
    """Of the offsets that the optimiser draws."""

    def digest(self) -> str:
        """SHA-256 of the plan's content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """A plan from a TOML or JSON file; fields left out keep their defaults."""
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{path}: {where}: {first['msg']}. See docs/extending.md for a plan's fields.") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(
                f"{path} is not a readable plan ({error}). Give a TOML or JSON file, or a recipe's name."
            ) from None
