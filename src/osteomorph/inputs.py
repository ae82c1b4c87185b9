"""From what the user gave to a case: files or objects read, checked, their bones named."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

from osteomorph import io
from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.image import Image, Labels
from osteomorph.memory import check_memory
from osteomorph.plan import Plan
from osteomorph.threads import spread

Bones = Literal["auto", "moving", "fixed", "both", "none"]
BoneLabels = Sequence[int] | Mapping[int, str]
ImageSource = str | Path | Image
LabelSource = str | Path | Labels | None
MaskSource = str | Path | Image | None


@final
@dataclass(frozen=True)
class BoneIds:
    """Label ids that are bone, and those of them that the chosen label map can hold rigid."""

    known: tuple[int, ...] = ()
    rigid: tuple[int, ...] = ()


def read_case(
    fixed: ImageSource,
    moving: ImageSource,
    fixed_labels: LabelSource,
    moving_labels: LabelSource,
    fixed_mask: MaskSource,
    moving_mask: MaskSource,
    plan: Plan,
) -> tuple[Case, dict[str, str]]:
    """The case and the SHA-256 of each part. Headers first, so that too large a pair is refused before it is read."""
    grids = [side.grid if isinstance(side, Image) else io.read_header(side).grid for side in (fixed, moving)]
    if grids[0] is not None and grids[1] is not None:
        check_memory(grids[0], grids[1], plan)
    images = list(spread(lambda side: side if isinstance(side, Image) else io.read_image(side), (fixed, moving)))
    labels = [
        given if given is None or isinstance(given, Labels) else io.read_labels(given, like=image.grid)
        for given, image in zip((fixed_labels, moving_labels), images, strict=True)
    ]
    masks = [
        given if given is None or isinstance(given, Image) else io.read_mask(given, image.grid)
        for given, image in zip((fixed_mask, moving_mask), images, strict=True)
    ]
    sources = {
        "fixed": fixed,
        "moving": moving,
        "fixed_labels": fixed_labels,
        "moving_labels": moving_labels,
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
    }
    present = {name: given for name, given in sources.items() if given is not None}
    hashes = dict(zip(present, spread(_sha256, present.values()), strict=True))
    return Case(images[0], images[1], labels[0], labels[1], masks[0], masks[1]), hashes


def with_bones(case: Case, wanted: BoneLabels | None, bones: Bones) -> tuple[Case, BoneIds]:
    """The case with the user's names on its labels, and which ids are bone."""
    sides = {"fixed": case.fixed_labels, "moving": case.moving_labels}
    for side, labels in sides.items():
        if bones in (side, "both") and labels is None:
            raise InputError(f"--bones {bones} needs --{side}-labels. Give them, or use --bones auto.")
    present = {side: set(labels.ids()) for side, labels in sides.items() if labels is not None}
    if not present:
        if wanted is not None:
            raise InputError("--bone-labels needs --fixed-labels or --moving-labels. Give one of them.")
        return case, BoneIds()
    everywhere = set().union(*present.values())
    ids = tuple(sorted(everywhere)) if wanted is None else tuple(wanted)
    absent = [i for i in ids if i not in everywhere]
    if absent:
        raise InputError(
            f"Bone label {_listed(absent)} does not occur in the labels given, which hold {_listed(sorted(everywhere))}. "
            "Correct --bone-labels."
        )
    if isinstance(wanted, Mapping):
        named = [_named(labels, wanted) for labels in (case.fixed_labels, case.moving_labels)]
        case = replace(case, fixed_labels=named[0], moving_labels=named[1])
    auto = "moving" if "moving" in present else "fixed"
    chosen = {"auto": [auto], "both": ["fixed", "moving"], "none": []}.get(bones, [bones])
    return case, BoneIds(ids, tuple(i for i in ids if any(i in present[side] for side in chosen)))


def only_bones(case: Case, bones: BoneIds) -> Case:
    """The case with every label that is no bone left out; label maps without any bone are dropped."""

    def keep(labels: Labels | None) -> Labels | None:
        if labels is None or not set(labels.ids()) & set(bones.known):
            return None
        return labels.only(bones.known)

    return replace(case, fixed_labels=keep(case.fixed_labels), moving_labels=keep(case.moving_labels))


def _named(labels: Labels | None, names: Mapping[int, str]) -> Labels | None:
    return None if labels is None else replace(labels, names={**labels.names, **names})


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))


def _sha256(given: object) -> str:
    """Of a file's bytes, or of an object's voxels and grid."""
    if not isinstance(given, (Image, Labels)):
        return io.digest(str(given))
    found = hashlib.sha256(given.data.numpy().tobytes())
    found.update(given.grid.affine.tobytes())
    return found.hexdigest()
