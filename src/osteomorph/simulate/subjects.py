"""Where the anatomies of a cohort come from: drawn anew for every pair, or made from one CT or label map."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from osteomorph import io
from osteomorph.simulate.atlas import atlas_from_ct, atlas_from_labels
from osteomorph.simulate.build import draw_build
from osteomorph.simulate.knee import Knee, draw_knee_build
from osteomorph.simulate.naming import names_for
from osteomorph.simulate.trunk import Trunk
from osteomorph.simulate.write import Subject

PROCEDURAL = ("lumbar", "thorax", "pelvis", "knee")
"""Fields of view of procedural anatomies."""


def procedural(view: str, seed: int) -> Callable[[int], Subject]:
    """i -> a patient of their own, seen in ``view``."""

    def subject(number: int) -> Subject:
        generator = np.random.default_rng((seed, number, 0))
        if view == "knee":
            knee = draw_knee_build(generator)
            return Subject(Knee(knee), f"patient{number:03d}", {"kind": "knee", "build": asdict(knee)})
        build = draw_build(generator)
        return Subject(Trunk(build), f"patient{number:03d}", {"kind": "trunk", "build": asdict(build)})

    return subject


def from_files(
    ct: Path | None, labels: Path, names: Mapping[int, str] | None = None
) -> tuple[Callable[[int], Subject], tuple[str, ...]]:
    """i -> the same patient, from a CT with bone labels or from a label map alone; and what there is to say of them.

    names: id -> structure; by default those found beside or in the label file.

    Raises InputError: a file cannot be read, or holds no two bones that can move against each other.
    """
    image = None if ct is None else io.read_image(ct)
    regions = io.read_labels(labels, None if image is None else image.grid)
    known = dict(names) if names is not None else names_for(labels)
    anatomy = atlas_from_labels(regions, known) if image is None else atlas_from_ct(image, regions, known or None)
    record = {
        "kind": "labels" if ct is None else "ct",
        "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (ct, labels) if file is not None},
        "notes": list(anatomy.notes),
    }
    patient = (ct or labels).name.partition(".")[0]
    return lambda number: Subject(anatomy, patient, record), anatomy.notes
