"""The rigid start: on labels, on images, or none. It says when it failed instead of going on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

from osteomorph.case import Case
from osteomorph.errors import InputError, StartError
from osteomorph.geometry import overlap_mm3
from osteomorph.plan import InitialisePlan
from osteomorph.transforms import Rigid


@final
@dataclass(frozen=True, eq=False)
class Start:
    """Where registration begins.

    rigid: fixed mm -> moving mm.
    method: ``"none"``, ``"labels"``, ``"labels (elastix)"``, ``"images"``, ``"bones"``.
    score: mean symmetric surface distance in mm on labels, mutual information in nats on images and bones, 0 for none.
    warnings: one sentence each.
    """

    rigid: Rigid
    method: str
    score: float = 0.0
    warnings: tuple[str, ...] = ()


def initialise(case: Case, plan: InitialisePlan, seed: int = 0, from_centres: bool = False) -> Start:
    """moved(x) = moving(start.rigid(x)), x in fixed world mm (thesis, 3.2.1).

    case: prepared. seed: of the random poses that say what chance would score on images. from_centres: begin at the middle of
    both images, not where their headers put them; labels do so anyway.

    Raises StartError when the start failed or cannot be trusted, InputError when labels that the plan names are missing.
    """
    method = plan.method
    if method == "auto":
        method = "labels" if start_ids(case, plan.labels) else "images"
    if method == "none":
        if overlap_mm3(case.fixed.grid, case.moving.grid) == 0:
            raise StartError(
                "The fields of view do not overlap, so the images cannot be taken as aligned. "
                "Give an initial transform, or let the start be found (method auto)."
            )
        return Start(Rigid.identity(), "none")
    if method == "images":
        from osteomorph.start_images import start_on_images

        start = Start(*start_on_images(case, plan, seed, from_centres))
        unused = plan.method == "auto" and plan.labels
        return replace(start, warnings=(_no_ids(case, plan.labels), *start.warnings)) if unused else start
    ids = start_ids(case, plan.labels)
    if not ids:
        raise InputError(_no_ids(case, plan.labels))
    if plan.backend == "elastix":
        from osteomorph.start_elastix import start_with_elastix

        return Start(*start_with_elastix(case, ids))
    from osteomorph.start_labels import start_on_labels

    return Start(*start_on_labels(case, ids))


def start_ids(case: Case, wanted: tuple[int, ...]) -> list[int]:
    """Ids that both label maps hold, of those wanted (all by default)."""
    if case.fixed_labels is None or case.moving_labels is None:
        return []
    shared = set(case.fixed_labels.ids()) & set(case.moving_labels.ids())
    return sorted(shared & set(wanted) if wanted else shared)


def _no_ids(case: Case, wanted: tuple[int, ...]) -> str:
    for side, labels in (("fixed", case.fixed_labels), ("moving", case.moving_labels)):
        if labels is None:
            return f"A start on labels needs labels of both images; there are no {side} ones. Give them, or start on images."
    fixed, moving = (_listed(labels.ids()) for labels in (case.fixed_labels, case.moving_labels) if labels is not None)
    asked = f"No id of {_listed(wanted)}" if wanted else "No id"
    return f"{asked} is in both label maps (fixed: {fixed}; moving: {moving}). Give ids that both hold, or start on images."


def _listed(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids)) or "none"
