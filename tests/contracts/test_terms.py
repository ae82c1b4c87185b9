"""One contract for every term; a new one is added to TERMS, or the inventory test fails. Seeded mistakes must break it."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from importlib import import_module

import numpy as np
import pytest
import torch
from conftest import axis_grid, oblique_grid
from scipy.spatial.transform import Rotation

import osteomorph
from osteomorph import geometry, regularity, similarity
from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.objective import Alignment, Objective, Term
from osteomorph.regularity import Bending, Diffusion, Rigidity
from osteomorph.similarity import Dice, Mind, MindSsc, MutualInformation
from osteomorph.transforms import Displacement

TERMS: dict[str, Term] = {
    "MutualInformation": MutualInformation(),
    "MutualInformation, bspline": MutualInformation(16, "bspline"),
    "Dice": Dice(),
    "Mind": Mind(dilation=1),
    "Diffusion": Diffusion(),
    "Bending": Bending(),
    "Rigidity": Rigidity(),
}
SIMILARITIES = ("MutualInformation", "MutualInformation, bspline", "Dice", "Mind")
MASKED = ("MutualInformation", "MutualInformation, bspline", "Mind")
REGULARISERS = ("Diffusion", "Bending", "Rigidity")
FREE = {  # what a regulariser costs nothing for
    "Diffusion": "translation",
    "Bending": "affine",
    "Rigidity": "rotation",
}


# -- a small case with a known answer ---------------------------------------------------------------------------------
TRUTH = np.eye(4)
TRUTH[:3, :3] = Rotation.from_euler("xyz", (4, -6, 5), degrees=True).as_matrix()
TRUTH[:3, 3] = (2.0, -1.5, 2.5)


@dataclass(frozen=True)
class Scene:
    """An anatomy, the same after the rigid motion TRUTH about the fixed centre, and a grid for warps on which both lie."""

    case: Case
    field: Grid
    memo: dict = dataclass_field(default_factory=dict)

    def alignment(self, vectors: torch.Tensor, field: Grid | None = None, **settings) -> Alignment:
        settings = {"rigid_labels": (1, 2), "rigid_frame": "fixed", "memo": self.memo} | settings
        return Alignment(self.case, Displacement(vectors, field or self.field), **settings)

    def affine(self, matrix: np.ndarray, shift=(0, 0, 0), field: Grid | None = None) -> torch.Tensor:
        """u(x) of x -> c + matrix (x - c) + shift, c the fixed centre."""
        local = offsets(field or self.field, self.case.fixed.grid.centre_mm)
        change = torch.as_tensor(matrix - np.eye(3), dtype=local.dtype)
        return torch.einsum("ab,bijk->aijk", change, local) + torch.tensor(shift, dtype=local.dtype)[:, None, None, None]


def offsets(grid: Grid, centre: np.ndarray) -> torch.Tensor:
    return grid.points(torch.float64) - torch.as_tensor(centre)[:, None, None, None]


def anatomy(x: torch.Tensor) -> torch.Tensor:
    waves = torch.sin(x[0] / 3 + 0.5) + torch.sin(x[1] / 4 + x[2] / 7) + torch.cos(x[2] / 5 - x[0] / 6) + x[1] / 12
    return torch.sigmoid(waves)


def bones(x: torch.Tensor) -> torch.Tensor:
    first, second = (((x - torch.tensor(at)[:, None, None, None]).norm(dim=0) < 5) for at in ((-3.0, -3, -6), (3.0, 4, 7)))
    return first.to(torch.int16) + 2 * second.to(torch.int16)


def scene(fixed_grid: Grid, moving_spacing_mm: float = 1.5) -> Scene:
    centre = fixed_grid.centre_mm
    tilted = Rotation.from_euler("xyz", (-4, 6, 7), degrees=True).as_matrix() @ fixed_grid.direction
    moving_grid = around(fixed_grid, tilted[:, [2, 0, 1]] * [1, -1, 1], moving_spacing_mm, 1.9)  # other axes, other signs
    field = around(fixed_grid, oblique_grid(angles=(-10, 20, 55)).direction, (4.0, 5.0, 8.0), 2.4)
    back = np.linalg.inv(TRUTH)
    seen = offsets(fixed_grid, centre)
    origin = torch.einsum("ab,bijk->aijk", torch.as_tensor(back[:3, :3]), offsets(moving_grid, centre))
    origin = origin + torch.as_tensor(back[:3, 3])[:, None, None, None]
    case = Case(
        Image(anatomy(seen)[None], fixed_grid),
        Image(1 - anatomy(origin)[None] ** 1.5, moving_grid),
        Labels(bones(seen)[None], fixed_grid),
        Labels(bones(origin)[None], moving_grid),
    )
    return Scene(case, field)


def around(inner: Grid, direction: np.ndarray, spacing, times: float) -> Grid:
    """Grid about the same centre that is ``times`` as wide along each world axis."""
    spacing = np.broadcast_to(spacing, (3,))
    reach = times * np.abs(inner.affine[:3, :3]) @ (np.array(inner.shape) / 2)
    shape = np.ceil(2 * (np.abs(direction.T) @ reach) / np.sqrt(3) / spacing).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = inner.centre_mm - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid(tuple(shape.tolist()), affine)


SCENES = {
    "oblique": oblique_grid((24, 18, 10)),
    "LPS": axis_grid((-1, -1, 1), (18, 16, 18)),
    "isotropic": oblique_grid((16, 14, 16), (1.5, 1.5, 1.5)),
}
CACHE: dict[str, Scene] = {}


def known(name: str) -> Scene:
    if name not in CACHE:
        CACHE[name] = scene(SCENES[name])
    return CACHE[name]


@pytest.fixture(params=["oblique", "LPS"])
def setting(request) -> Scene:
    return known(request.param)


@pytest.fixture(params=list(TERMS), ids=str)
def name(request) -> str:
    return request.param


def truth(setting: Scene, field: Grid | None = None) -> torch.Tensor:
    return setting.affine(TRUTH[:3, :3], TRUTH[:3, 3], field)


def waves(setting: Scene, field: Grid | None = None, size_mm: float = 0.8) -> torch.Tensor:
    x, y, z = offsets(field or setting.field, setting.case.fixed.grid.centre_mm) / 11
    return size_mm * torch.stack([torch.sin(y + z), torch.cos(z + 0.3) * torch.sin(x), torch.sin(x - 0.4 * y)])


# -- the clauses ------------------------------------------------------------------------------------------------------
def check_scalar(term: Term, setting: Scene) -> None:
    """One finite number, of the warp's type, that leaves its input as it was."""
    vectors = (truth(setting) + waves(setting)).requires_grad_()
    kept = vectors.detach().clone()
    value = term(setting.alignment(vectors))
    value.backward()
    assert value.shape == ()
    assert value.isfinite()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()
    assert vectors.grad.abs().max() > 0
    assert torch.equal(vectors.detach(), kept)


def check_gradient(term: Term, setting: Scene) -> None:
    """Analytic against numeric, along random directions in float64."""
    vectors = (truth(setting) + waves(setting)).requires_grad_()
    settings = {"stride": 3, "offset": (1, 0, 1)}
    (gradient,) = torch.autograd.grad(term(setting.alignment(vectors, **settings)), vectors)
    step = 1e-6
    for _ in range(4):
        direction = torch.randn_like(vectors)
        with torch.no_grad():
            ends = [term(setting.alignment(vectors + sign * step * direction, **settings)) for sign in (1, -1)]
        numeric = float(ends[0] - ends[1]) / (2 * step)
        assert numeric == pytest.approx(float((gradient * direction).sum()), rel=2e-3, abs=1e-7)


def check_rotated_world(term: Term, setting: Scene) -> None:
    """Grids and vectors carried along by a rigid motion of the world."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_euler("xyz", (50, -20, 70), degrees=True).as_matrix(), (30, -80, 12)
    case = setting.case
    carried = Case(
        replace(case.fixed, grid=case.fixed.grid.moved(matrix)),
        replace(case.moving, grid=case.moving.grid.moved(matrix)),
        replace(case.fixed_labels, grid=case.fixed.grid.moved(matrix)),
        replace(case.moving_labels, grid=case.moving.grid.moved(matrix)),
    )
    vectors = truth(setting) + waves(setting)
    turned = torch.einsum("ab,bijk->aijk", torch.as_tensor(matrix[:3, :3]), vectors)
    there = Scene(carried, setting.field.moved(matrix)).alignment(turned)
    assert term(there).item() == pytest.approx(term(setting.alignment(vectors)).item(), rel=1e-7, abs=1e-9)


def check_truth_is_best(term: Term, setting: Scene) -> None:
    """Less at the true motion than 1 mm off along either direction of any axis, or 5 degrees off about any."""
    best = term(setting.alignment(truth(setting))).item()
    for axis in range(3):
        for sign in (1, -1):
            unit = sign * np.eye(3)[axis]
            shifted = setting.affine(TRUTH[:3, :3], TRUTH[:3, 3] + unit)
            twisted = setting.affine(Rotation.from_rotvec(5 * unit, degrees=True).as_matrix() @ TRUTH[:3, :3], TRUTH[:3, 3])
            for wrong in (shifted, twisted):
                assert term(setting.alignment(wrong)).item() > best


def check_refined_field(term: Term, setting: Scene) -> None:
    """The same motion on a field's grid twice as fine."""
    coarse = Grid(setting.field.shape, setting.field.affine).resampled(tuple(setting.field.spacing_mm / 2))
    fine = coarse.resampled(tuple(coarse.spacing_mm / 2))
    values = [term(setting.alignment(truth(setting, field) + waves(setting, field), field)).item() for field in (coarse, fine)]
    assert values[1] == pytest.approx(values[0], rel=0.1)


def check_free_motion(term: Term, setting: Scene) -> None:
    """Nothing for what a regulariser allows, something for anything beyond it."""
    turn, shift = TRUTH[:3, :3], (3.0, -7.0, 11.0)
    motions = {
        "translation": setting.affine(np.eye(3), shift),
        "rotation": setting.affine(turn, shift),
        "affine": setting.affine(turn @ np.diag([1.1, 0.9, 1.0]), shift),
        "waves": waves(setting),
    }
    allowed = {"translation": ["translation"], "rotation": ["translation", "rotation"]}
    free = allowed.get(FREE[_name(term)], ["translation", "rotation", "affine"])
    for motion, vectors in motions.items():
        value = term(setting.alignment(vectors)).item()
        assert (value < 1e-20) if motion in free else (value > 1e-4)


def check_mask_is_crop(term: Term, setting: Scene) -> None:
    """A fixed mask of a box has the value of the fixed image cropped to it."""
    case, margin = setting.case, (5, 4, 2)
    inside = (slice(None), *(slice(m, -m) for m in margin))
    mask = torch.zeros_like(case.fixed.data)
    mask[inside] = 1
    small = case.fixed.grid.padded(tuple(-m for m in margin))
    cropped = Image(case.fixed.data[inside], small)
    vectors = truth(setting) + waves(setting)
    masked = Scene(replace(case, fixed_mask=Image(mask, case.fixed.grid)), setting.field, setting.memo).alignment(vectors)
    memo: dict = {}
    if isinstance(term, Mind):  # described whole, then cropped: its patches reach over the border
        describe = MindSsc(term.radius, term.dilation)
        memo[describe, id(cropped)] = Image(describe(case.fixed).data[inside], small)
    alone = Scene(Case(cropped, case.moving), setting.field).alignment(vectors, memo=memo, rigid_labels=())
    assert term(masked).item() == pytest.approx(term(alone).item(), rel=1e-9)
    assert term(masked).item() != pytest.approx(term(setting.alignment(vectors)).item(), rel=1e-3)


def _name(term: Term) -> str:
    return type(term).__name__


# -- every term keeps it ----------------------------------------------------------------------------------------------
def test_every_term_is_under_contract():
    for module in pkgutil.walk_packages(osteomorph.__path__, "osteomorph."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    found = {kind for kind in Term.__subclasses__() if kind.__module__.startswith("osteomorph.")}
    public = {kind.__name__ for kind in found if not kind.__name__.startswith("_")}
    assert public == {_name(term) for term in TERMS.values()}
    assert {_name(TERMS[n]) for n in (*SIMILARITIES, *REGULARISERS)} == public
    assert all(getattr(kind, "__final__", False) for kind in found)


@pytest.mark.parametrize("check", [check_scalar, check_gradient, check_rotated_world, check_refined_field])
def test_every_term(name, check, setting):
    check(TERMS[name], setting)


@pytest.mark.parametrize("similarity_name", SIMILARITIES)
def test_similarities_are_best_at_the_truth(similarity_name, setting):
    if isinstance(TERMS[similarity_name], Mind):  # compares neighbours at so many voxels: the spacings have to be alike
        setting = known("isotropic")
    check_truth_is_best(TERMS[similarity_name], setting)


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_regularisers_allow_what_they_say(regulariser, setting):
    check_free_motion(TERMS[regulariser], setting)


@pytest.mark.parametrize("masked", MASKED)
def test_similarities_are_masked_by_weight(masked, setting):
    check_mask_is_crop(TERMS[masked], setting)


def test_terms_are_values(name):
    assert TERMS[name] == replace(TERMS[name])
    assert hash(TERMS[name]) == hash(replace(TERMS[name]))


def test_float32_is_close(name, setting):
    case = setting.case
    vectors = truth(setting) + waves(setting)
    single = replace(
        case,
        fixed=case.fixed.with_data(case.fixed.data.float()),
        moving=case.moving.with_data(case.moving.data.float()),
    )
    value = TERMS[name](Scene(single, setting.field).alignment(vectors.float()))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(TERMS[name](setting.alignment(vectors)).item(), rel=1e-3)


def test_objective_adds_them_up(setting):
    terms = [(name, 0.5 + n, term) for n, (name, term) in enumerate(TERMS.items())]
    alignment = setting.alignment(waves(setting).requires_grad_())
    total, values = Objective(terms)(alignment)
    assert total.item() == pytest.approx(sum(weight * values[name] for name, weight, _ in terms))
    assert values == {name: term(alignment).item() for name, _, term in terms}


# -- seeded mistakes --------------------------------------------------------------------------------------------------
def voxel_units(monkeypatch) -> None:
    kept = regularity._first, regularity._second, regularity.diffusion

    def unit(grid: Grid) -> Grid:
        return Grid(grid.shape, np.vstack([np.c_[grid.direction, np.zeros(3)], [0, 0, 0, 1]]))

    monkeypatch.setattr(regularity, "_first", lambda grid, axis: kept[0](unit(grid), axis))
    monkeypatch.setattr(regularity, "_second", lambda grid, axes: kept[1](unit(grid), axes))
    monkeypatch.setattr(regularity, "diffusion", lambda vectors, grid: kept[2](vectors, unit(grid)))


def swapped_components(monkeypatch) -> None:
    kept = Displacement.__call__
    monkeypatch.setattr(Displacement, "__call__", lambda self, points: points + (kept(self, points) - points).flip(0))


def wrong_flip(monkeypatch) -> None:
    kept = geometry.sample_unit
    monkeypatch.setattr(geometry, "sample_unit", lambda data, unit: kept(data, unit.flip(-2)))


def half_size(monkeypatch) -> None:
    kept = geometry.sample_unit  # 2 * index / size - 1 instead of 2 * index / (size - 1) - 1

    def less(data, unit):
        size = torch.tensor(data.shape[-3:]).flip(0)[:, None]
        return kept(data, (unit + 1) * (size - 1) / size - 1)

    monkeypatch.setattr(geometry, "sample_unit", less)


def inverse_direction(monkeypatch) -> None:
    monkeypatch.setattr(
        Displacement, "__call__", lambda self, points: points - geometry.sample(self.vectors, self.grid, points)
    )


def image_times_weight(monkeypatch) -> None:
    kept = similarity.mutual_information

    def multiplied(fixed, moved, weight, bins, kernel, levels):
        return kept(fixed * weight, moved * weight, None, bins, kernel, levels)

    monkeypatch.setattr(similarity, "mutual_information", multiplied)


def array_axes(monkeypatch) -> None:
    """Components along world axes differentiated along array axes, as if they were the same."""
    kept = regularity.Neighbourhood.__init__
    monkeypatch.setattr(
        regularity.Neighbourhood,
        "__init__",
        lambda self, differences, direction, strides: kept(self, differences, np.eye(3), strides),
    )


def gradient_per_level(monkeypatch) -> None:
    kept = similarity._MutualInformation.backward

    def scaled(ctx, gradient):
        none, moved, *others = kept(ctx, gradient / 511)
        return none, moved, *others

    monkeypatch.setattr(similarity._MutualInformation, "backward", staticmethod(scaled))


MISTAKES: list[tuple[Callable, Callable, str]] = [
    (voxel_units, check_refined_field, "Diffusion"),
    (voxel_units, check_refined_field, "Bending"),
    (voxel_units, check_free_motion, "Rigidity"),
    (array_axes, check_free_motion, "Rigidity"),
    (array_axes, check_rotated_world, "Rigidity"),
    *((swapped_components, check_truth_is_best, name) for name in SIMILARITIES),
    *((swapped_components, check_rotated_world, name) for name in SIMILARITIES),
    *((inverse_direction, check_truth_is_best, name) for name in SIMILARITIES),
    *((wrong_flip, check_truth_is_best, name) for name in SIMILARITIES),
    *((half_size, check_truth_is_best, name) for name in SIMILARITIES),
    (image_times_weight, check_mask_is_crop, "MutualInformation"),
    (gradient_per_level, check_gradient, "MutualInformation"),
]


@pytest.mark.parametrize(("mistake", "check", "term"), MISTAKES, ids=[f"{m.__name__}-{c.__name__}-{n}" for m, c, n in MISTAKES])
def test_a_seeded_mistake_is_caught(mistake, check, term, monkeypatch):
    setting = known("isotropic" if term == "Mind" and check is check_truth_is_best else "oblique")
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        check(TERMS[term], setting)
