"""Bones where nobody labelled any: found by the shipped network in the image that shows them best."""

from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, final

import numpy as np
import torch

from osteomorph.bone_names import LEVELS
from osteomorph.bone_network import BoneNetwork, is_ct
from osteomorph.case import Case
from osteomorph.exact_path import measured_outlines
from osteomorph.found_bones import FoundBones, find_bones
from osteomorph.image import Image, Labels, Part
from osteomorph.inputs import BoneIds, only_bones
from osteomorph.prepare import near, with_labels
from osteomorph.threads import beside
from osteomorph.transforms import Rigid

AROUND_MM = 10.0
"""What a bone may move besides the rigid start, for whether it comes into view."""

MUCH_LARGER = 2.0
"""Times the other image's field of view, from which on one is looked at where the rigid start says, not as a whole."""

LEAST_CONFIDENCE = 0.5
"""Of a bone that is held rigid; what is found with less stays soft, and is named."""


@final
@dataclass(frozen=True, eq=False)
class FoundIn:
    """side: the image the bones were found in. bones: all of them, the unsure ones too."""

    side: Literal["fixed", "moving"]
    bones: FoundBones = field(repr=False)

    @property
    def sure(self) -> Labels:
        """Those that are held rigid."""
        return self.bones.sure(LEAST_CONFIDENCE)

    @property
    def confidence(self) -> dict[int, float]:
        """Id -> in [0, 1], of those that are held rigid."""
        return {label: value for label, value in self.bones.confidence.items() if value >= LEAST_CONFIDENCE}

    def in_ct(self, case: Case) -> bool:
        """Whether a CT said where they end."""
        return is_ct((case.fixed if self.side == "fixed" else case.moving).data)

    def outlined(self, case: Case, prepared: Case) -> Case:
        """Whose labels bones end by: those of a case as given, or as prepared where that leaves less than half as many voxels.

        Found at 2 mm, bones are not known any finer, and their distances and regions take memory and time by the voxel.
        """
        own, other = ((c.fixed if self.side == "fixed" else c.moving).grid.spacing_mm for c in (case, prepared))
        return prepared if np.prod(other) > 2 * np.prod(own) else case

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence each."""
        unsure = len(self.bones.confidence) - len(self.confidence)
        if not self.confidence:
            said = f" ({unsure} below a confidence of {LEAST_CONFIDENCE})" if unsure else ""
            return (f"No bone was found{said}: nothing is held rigid. Give --moving-labels or --fixed-labels.",)
        if unsure:
            return (f"{unsure} possible bones of the {self.side} image stay soft: confidence below {LEAST_CONFIDENCE}.",)
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the names take for granted."""
        told = sorted((LEVELS.index(name), name) for name in self.sure.names.values() if name in LEVELS)
        if not told:
            return ()
        return (f"Levels from {told[0][1]} to {told[-1][1]} count up from the sacrum: five lumbar vertebrae are assumed.",)


@final
@dataclass(frozen=True, eq=False)
class Held:
    """found: all bones. ids: of those that are held rigid and in view. case, prepared: with these alone as their labels, or as
    they were where there are none. outlined: of the two, whose labels say where bones end. outlines: `measured_outlines` of
    those, which has begun."""

    found: FoundIn
    ids: tuple[int, ...]
    case: Case = field(repr=False)
    prepared: Case = field(repr=False)
    outlined: Case = field(repr=False)
    outlines: Future[None] | None = field(default=None, repr=False)


Ahead = Future[FoundBones]


def looked_ahead(case: Case, network: BoneNetwork | None = None) -> Ahead | None:
    """Bones of the only CT, begun on half the threads while the rigid start is still looked for.

    None where there is no thread for that, where not exactly one image is a CT, or where it shows so much more than the other
    image that the start should say where to look.
    """
    if torch.get_num_threads() < 2:
        return None
    ct = [image for image in (case.moving, case.fixed) if is_ct(image.data)]
    if len(ct) != 1:
        return None
    other = case.fixed if ct[0] is case.moving else case.moving
    if np.prod(ct[0].grid.size_mm) > MUCH_LARGER * np.prod(other.grid.size_mm):
        return None
    return beside(lambda: find_bones(ct[0], network))


def bones_found(case: Case, start: Rigid, network: BoneNetwork | None = None, ahead: Ahead | None = None) -> FoundIn:
    """In the CT where exactly one image is one and bones are found in it; else in the image whose sure bones are larger.

    One image is enough: the other's bones follow from the transform. start: fixed mm -> moving mm; what lies far from all that
    the other image shows is not looked at. ahead: from `looked_ahead`.
    """
    sides: list[Literal["fixed", "moving"]] = ["moving", "fixed"]
    images = {"fixed": case.fixed, "moving": case.moving}
    parts = {
        "fixed": near(case.fixed.grid, case.moving.grid, start.inverse()),
        "moving": near(case.moving.grid, case.fixed.grid, start),
    }
    ct = [side for side in sides if is_ct(images[side].data)]
    if len(ct) == 1:
        first = FoundIn(ct[0], _found(images[ct[0]], parts[ct[0]], network) if ahead is None else ahead.result())
        if first.confidence:
            return first
        sides.remove(ct[0])
        second = FoundIn(sides[0], _found(images[sides[0]], parts[sides[0]], network))
        return second if second.confidence else first
    both = [FoundIn(side, _found(images[side], parts[side], network)) for side in sides]
    return max(both, key=_volume_mm3)


def held_case(
    case: Case,
    prepared: Case,
    start: Rigid,
    ahead: Ahead | None = None,
    at_once: bool = True,
    network: BoneNetwork | None = None,
) -> Held:
    """`bones_found`, and what follows from them for a case and what was prepared from it.

    at_once: whether their outlines are measured before anyone asks, beside what comes next.
    """
    found = bones_found(case, start, network, ahead)
    ids = in_view(found, case, start)
    if not ids:
        return Held(found, ids, case, prepared, case)
    case = only_bones(with_found_bones(case, found), BoneIds(ids, ids))
    prepared = with_labels(prepared, case)
    outlined = found.outlined(case, prepared)
    outlines = beside(partial(measured_outlines, outlined, prepared, ids, "auto")) if at_once else None
    return Held(found, ids, case, prepared, outlined, outlines)


def done(finding: Future[Held] | None, outlines: Future[Any] | None) -> bool:
    """Whether nothing is looked for or measured any more."""
    if finding is not None:
        outlines = finding.result().outlines if finding.done() else finding
    return outlines is None or outlines.done()


def _found(image: Image, part: Part | None, network: BoneNetwork | None) -> FoundBones:
    """Bones of a part, on the whole grid."""
    if part is None or image.grid.cropped(part).shape == image.grid.shape:
        return find_bones(image, network)
    found = find_bones(image.cropped(part), network)
    data = torch.zeros(1, *image.grid.shape, dtype=found.labels.data.dtype)
    data[(slice(None), *part)] = found.labels.data
    return replace(found, labels=replace(found.labels, data=data, grid=image.grid))


def _volume_mm3(found: FoundIn) -> float:
    labels = found.sure
    return float(labels.mask().sum()) * float(np.prod(labels.grid.spacing_mm))


def with_found_bones(case: Case, found: FoundIn) -> Case:
    """The case with the bones that are held rigid as the labels of their image; as it is where there are none."""
    if not found.confidence:
        return case
    return replace(case, fixed_labels=found.sure) if found.side == "fixed" else replace(case, moving_labels=found.sure)


def in_view(found: FoundIn, case: Case, start: Rigid) -> tuple[int, ...]:
    """Ids of the sure bones of which the other image shows something after the rigid start, or within `AROUND_MM` of it.

    start: fixed mm -> moving mm.
    """
    to_other, other = (start.inverse(), case.fixed.grid) if found.side == "moving" else (start, case.moving.grid)
    margin = np.ceil(AROUND_MM / other.spacing_mm).astype(int).tolist()
    around = other.padded((margin[0], margin[1], margin[2]))
    labels = found.sure
    places = labels.data[0].nonzero()
    ids = labels.data[0][tuple(places.T)]
    seen = around.contains(to_other(labels.grid.world(places.T.double())))
    return tuple(int(k) for k in torch.unique(ids[seen]))
