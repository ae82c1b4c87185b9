"""What the structures of a label map are, by their names; and where the names of a label file are found."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, final
from xml.etree import ElementTree

import nibabel as nib
import numpy as np

from osteomorph.errors import InputError
from osteomorph.io import read_labels
from osteomorph.io.files import NIFTI, PathLike, existing, suffix
from osteomorph.io.images import read_names

VERTEBRAE = (
    *(f"C{n}" for n in range(1, 8)),
    *(f"T{n}" for n in range(1, 14)),
    *(f"L{n}" for n in range(1, 7)),
)
"""From the skull down."""

BONE_LABELS: dict[str, int] = {
    **{f"C{n}": n for n in range(1, 8)},
    **{f"T{n}": 7 + n for n in range(1, 13)},
    "T13": 28,
    **{f"L{n}": 19 + n for n in range(1, 7)},
    "sacrum": 26,
    "hip_left": 31,
    "hip_right": 32,
    "femur_left": 33,
    "femur_right": 34,
    **{f"rib_left_{n}": 40 + n for n in range(1, 13)},
    **{f"rib_right_{n}": 60 + n for n in range(1, 13)},
    "tibia": 81,
    "fibula": 82,
    "patella": 83,
}
"""Ids of bones: vertebrae as VerSe and TPTBox count them, the others' own."""

OTHER_BONES = 101
"""First id of bones that have none of their own."""

SPINE_IDS = {**{BONE_LABELS[name]: name for name in (*VERTEBRAE, "sacrum")}, 27: "coccyx"}

HIP = {"hip", "pelvis", "pelvic", "ilium", "ischium", "pubis", "innominate", "coxal", "coxae", "hemipelvis", "acetabulum"}
FEMUR = {"femur", "femurs", "femoral"}
LONE_BONES = (
    *("coccyx", "sternum", "skull", "cranium", "mandible", "humerus", "scapula", "clavicula", "clavicle", "radius", "ulna"),
    *("tibia", "fibula", "patella", "talus", "calcaneus", "tarsal", "tarsals", "metatarsal", "metatarsals", "carpal"),
    *("carpals", "metacarpal", "metacarpals", "phalanges", "hyoid", "scaphoid", "lunate", "triquetrum", "pisiform"),
    *("trapezium", "trapezoid", "capitate", "hamate", "navicular", "cuboid", "cuneiform", "bone", "bones", "ribs"),
)
FILLER = {"vertebra", "vertebrae", "vertebral", "body", "bone", "bones", "os", "the", "of", "level", "label", "segment"}
FILLER |= {"proximal", "distal", "head", "neck", "shaft", "pedicle", "lamina", "arch", "process", "spinous", "facet"}
SIDES = {"left": "left", "right": "right", "l": "left", "r": "right", "lt": "left", "rt": "right"}

NO_BONE = {"artery", "arteries", "vein", "veins", "vena", "nerve", "nerves", "muscle", "muscles", "cartilage", "cartilages"}
NO_BONE |= {"disc", "discs", "disk", "disks", "marrow", "ligament", "canal", "cord", "implant", "prosthesis", "fat", "joint"}

TISSUE_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("metal", ("implant", "prosthesis", "metal", "screw", "rod", "stent")),
    ("annulus", ("disc", "discs", "disk", "disks", "annulus", "intervertebral")),
    ("nucleus", ("nucleus",)),
    ("cord", ("cord", "cauda", "nerve", "nerves")),
    ("csf", ("canal", "csf", "thecal")),
    ("cartilage", ("cartilage", "cartilages", "costal", "meniscus")),
    ("ligament", ("ligament", "ligaments", "tendon")),
    ("vein", ("vein", "veins", "vena", "ivc", "cava")),
    ("vessel", ("aorta", "artery", "arteries", "vessel", "vessels", "trunk", "carotid", "subclavian", "brachiocephalic")),
    ("kidney", ("kidney", "kidneys", "renal")),
    ("liver", ("liver",)),
    ("spleen", ("spleen",)),
    ("heart", ("heart", "myocardium", "ventricle", "atrium", "atrial")),
    ("lung", ("lung", "lungs")),
    ("gas", ("trachea", "bronchus", "gas", "airway")),
    ("bowel", ("colon", "bowel", "duodenum", "stomach", "intestine", "rectum", "esophagus", "oesophagus", "sigmoid", "cecum")),
    ("urine", ("bladder",)),
    ("fat", ("fat", "adipose", "sat", "vat")),
    (
        "muscle",
        (
            *("muscle", "muscles", "autochthon", "autochton", "iliopsoas", "psoas", "iliacus", "gluteus", "erector"),
            *("multifidus", "quadratus", "obliquus", "rectus", "piriformis", "quadriceps", "sartorius", "hamstring"),
            *("trapezius", "latissimus", "deltoid", "pectoralis", "adductor", "obturator", "diaphragm"),
        ),
    ),
    ("skin", ("skin",)),
)
"""Tissue <- words any of which names it; the first tissue that fits."""

NOTHING = {"body", "trunc", "extremities", "background", "unknown", "other", "torso"}
"""Names that say nothing of the tissue."""


@final
class Structure(NamedTuple):
    """What one label stands for.

    name: as TotalSegmentator writes it ("hip_left"), but vertebrae plainly ("L3").
    tissue: one of TISSUES; None where the intensity has to decide.
    """

    kind: Literal["bone", "tissue"]
    name: str
    tissue: str | None


def structure(name: str) -> Structure:
    """What a name such as "vertebrae_L5", "L5 vertebra", "Left hip", "rib_left_7 (partial)" or "aorta" stands for.

    Unknown names are no bone, and an "organ".
    """
    plain = re.sub(r"\([^)]*\)|\[[^]]*\]", " ", name).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", plain) if word]
    bone = None if NO_BONE & set(words) else _bone(words)
    if bone is not None:
        return Structure("bone", bone, "marrow")
    tidy = "_".join(words) or name
    if "gallbladder" in words:
        return Structure("tissue", tidy, "fluid")
    for tissue, known in TISSUE_WORDS:
        if set(known) & set(words):
            return Structure("tissue", tidy, tissue)
    return Structure("tissue", tidy, None if not words or set(words) <= NOTHING else "organ")


def _bone(words: list[str]) -> str | None:
    numbered = re.fullmatch(r"(?:[a-z]+_)*?(c|th|t|l|s)_?(\d{1,2})(?:_[a-z]+)*", "_".join(words))
    if numbered:
        rest = set(re.sub(rf"(?:^|_){numbered[1]}_?{numbered[2]}(?=_|$)", "_", "_".join(words)).split("_")) - {""}
        level = f"{numbered[1][0].upper()}{int(numbered[2])}"
        if rest <= FILLER | set(SIDES) and (level in VERTEBRAE or level[0] == "S"):
            return "sacrum" if level[0] == "S" else level
    side = next((SIDES[word] for word in words if word in SIDES), None)
    found = set(words)
    numbers = [int(digits) for digits in re.findall(r"(?<![a-z0-9])(\d+)(?:st|nd|rd|th)?(?![a-z0-9])", " ".join(words))]
    if found & {"rib", "costa"} and side and len(numbers) == 1 and 1 <= numbers[0] <= 12:
        return f"rib_{side}_{numbers[0]}"
    if found & {"sacrum", "sacral"} and found <= {"sacrum", "sacral"} | FILLER:
        return "sacrum"
    for bone, known in (("hip", HIP), ("femur", FEMUR), ("rib", {"rib"})):
        if found & known and found <= known | FILLER | set(SIDES):
            whole = "pelvis" if bone == "hip" else bone
            return f"{bone}_{side}" if side else whole
    lone = [word for word in words if word in LONE_BONES]
    if lone and (len(lone) > 1 or lone[0] not in ("bone", "bones") or found <= {"bone", "bones"} | set(SIDES)):
        base = next((word for word in lone if word not in ("bone", "bones")), lone[0])
        return f"{base}_{side}" if side else base
    return None


def bone_labels(names: list[str]) -> dict[str, int]:
    """Bone name -> id: its own, or one from 101 up."""
    out = {name: BONE_LABELS[name] for name in names if name in BONE_LABELS}
    for name in sorted(set(names) - set(out)):
        own = BONE_LABELS.get(name.rsplit("_", 1)[0])
        out[name] = own if own is not None and own not in out.values() else max([OTHER_BONES - 1, *out.values()]) + 1
    return out


def names_for(path: PathLike) -> dict[int, str]:
    """Names of the labels of a file; empty where none are found.

    They come from ``<stem>.json``, else ``labels.json`` beside it, else the label table in the NIfTI header that
    TotalSegmentator writes, else from the ids, where these can be nothing but VerSe's (8..19 T1..T12, 20..24 L1..L5, 25 L6,
    26 sacrum).

    Raises InputError: the file is missing or damaged, or ``labels.json`` holds no names.
    """
    path = existing(path)
    ending = suffix(path)
    own, shared = path.with_name(path.name[: -len(ending)] + ".json"), path.with_name("labels.json")
    if own.exists() and own != shared:
        try:
            return read_names(own)
        except InputError:
            pass  # a side file of another kind, such as BIDS writes
    if shared.exists():
        return read_names(shared)
    return (_header_names(path) if ending in NIFTI else {}) or _spine_names(path)


def _header_names(path: Path) -> dict[int, str]:
    for extension in nib.load(path).header.extensions:  # type: ignore[attr-defined]
        content = extension.get_content()
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        if "<Label" not in text:
            continue
        try:
            table = ElementTree.fromstring(text.strip("\0 \n"))
        except ElementTree.ParseError:
            continue
        named = {int(entry.get("Key", "0")): (entry.text or "").strip() for entry in table.iter("Label")}
        return {label: name for label, name in named.items() if label != 0}
    return {}


def _spine_names(path: Path) -> dict[int, str]:
    """Ids 1..28 without a hole, more than a count from 1, that run down the body."""
    labels = read_labels(path)
    ids = labels.ids()
    if len(ids) < 2 or not set(ids) <= set(SPINE_IDS) or max(ids) <= 7:
        return {}
    order = [i for i in (*range(1, 20), 28, *range(20, 28)) if i in ids]
    inner = [i for i in (*range(1, 20), *range(20, 25), 26) if order[0] <= i <= order[-1]]
    if not set(inner) <= set(ids):
        return {}
    data = labels.data[0].numpy()
    height = {}
    for label in order:
        index = np.array([axis.mean() for axis in np.nonzero(data == label)])
        height[label] = float((labels.grid.affine[:3, :3] @ index)[2])
    if any(height[above] <= height[below] for above, below in pairwise(order)):
        return {}
    return {label: SPINE_IDS[label] for label in order}
