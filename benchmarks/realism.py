"""Simulated CT and MR next to real ones: values per tissue, gradients, noise, and slices to look at.

    python benchmarks/realism.py [--data FOLDER] [--out DIR] [--patients 3]

FOLDER (default: the environment variable OSTEOMORPH_TEST_DATA) holds ct-lumbopelvic (TCIA CCTH-A01, CC BY 4.0),
ct-abdomen-pelvis-3mm (TotalSegmentator's example, Apache-2.0), ct-lumbar-crop and mr-lumbar-crop (TPTBox samples, Apache-2.0),
mr-lumbar-t2 and mr-lumbar-water. The same rules find tissue in real and simulated volumes, from labels of vertebrae alone:

marrow       deeper than 4 mm in a vertebra
rim          within 2 mm below the surface of a vertebra: cortex, as voxels blur it
disc         within 3 mm of the middle between two neighbouring bodies
canal        brightest twentieth, 15 to 40 mm behind the middle of a body
psoas        box 31 to 37 mm beside a body (MR)
back fat     brightest tenth, 50 to 100 mm behind a body (MR)
muscle, fat  smoothed value in 20..80 and -130..-70 HU, two voxels from anything else (CT)
noise        first quartile of the standard deviation in 3 x 3 x 3 voxels: of fat (CT), of marrow (MR)
gradient     median and 90th percentile of its magnitude within 20 mm of a vertebra, in % of the range of values there
             (1st to 99th percentile) per mm

Writes realism.md and realism.png (real MR there: mr-lumbar-crop alone).
"""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import ndimage

from osteomorph.geometry import Grid, sample
from osteomorph.image import Image, Labels
from osteomorph.io import read_image, read_labels
from osteomorph.simulate.anatomy import Anatomy
from osteomorph.simulate.build import draw_build
from osteomorph.simulate.ct import draw_ct
from osteomorph.simulate.mr import draw_mr
from osteomorph.simulate.texture import texture
from osteomorph.simulate.trunk import Trunk
from osteomorph.threads import threads

CREDIT = (
    "Real CT: Mayr et al. 2023, TCIA CCTH-A01 (CC BY 4.0), slices resampled. "
    "Real MR: sample of TPTBox (Apache-2.0), one slice resampled."
)

AXES = {"CT": np.diag([-1.0, -1.0, 1.0]), "MR": np.array([(0, 0, -1), (0, -1, 0), (-1, 0, 0)], dtype=np.float64).T}


class Volume(NamedTuple):
    """An image with some vertebrae labelled, from the top down or up in the order of labels."""

    name: str
    image: Image
    labels: Labels


# -- real -----------------------------------------------------------------------------------------------------------------
def real_cts(data: Path) -> Iterable[Volume]:
    for folder, wanted in (("ct-lumbopelvic", (1, 2, 3)), ("ct-abdomen-pelvis-3mm", (1, 2, 3, 4))):
        labels = read_labels(data / folder / "labels.nii.gz").only(wanted)
        yield Volume(folder, read_image(data / folder / "ct.nii.gz"), labels)
    folder = data / "ct-lumbar-crop"
    yield Volume(folder.name, read_image(folder / "ct.nii.gz"), read_labels(folder / "seg-vert.nii.gz").only((21, 22, 23)))


def real_mrs(data: Path) -> Iterable[Volume]:
    folder = data / "mr-lumbar-crop"
    bodies, which = read_labels(folder / "seg-subreg.nii.gz").data == 49, read_labels(folder / "seg-vert.nii.gz")
    yield Volume(f"T2 {folder.name}", read_image(folder / "mr.nii.gz"), Labels(which.data * bodies, which.grid))
    for kind, title in (("mr-lumbar-t2", "T2"), ("mr-lumbar-water", "water")):
        for path in sorted((data / kind).glob("*_mr.nii.gz")):
            labels = read_labels(path.with_name(path.name.replace("_mr", "_labels")))
            yield Volume(f"{title} {kind}/{path.name[:2]}", read_image(path), labels)


# -- simulated ------------------------------------------------------------------------------------------------------------
def lattice(modality: str, spacing: tuple[float, float, float], size: tuple[float, float, float], centre: np.ndarray) -> Grid:
    """CT: axial LPS. MR: sagittal, axes down, back, left. size: along the array's axes."""
    shape = np.round(np.array(size) / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = AXES[modality] * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def vertebrae(anatomy: Anatomy, grid: Grid) -> Labels:
    points = grid.points().flatten(1)
    data = torch.zeros(grid.voxels, dtype=torch.int16)
    for label in (24, 23, 22, 21):  # from L5 up
        if label in anatomy.names:
            data[anatomy.bone(label, points, 1.0) < 0] = label
    return Labels(data.unflatten(0, grid.shape)[None], grid)


def patient(seed: int) -> Trunk:
    return Trunk(draw_build(np.random.default_rng((7, seed))))


def resampled(image: Image, spacing_mm: float) -> Image:
    grid = image.grid.resampled(spacing_mm)
    return Image(sample(image.data, image.grid, grid.points().flatten(1)).unflatten(1, grid.shape), grid)


def simulated_ct(seed: int, thin: bool = False, **numbers: float) -> Volume:
    """Slices of 2.5 mm, then resampled to 1.25 mm like the largest real volume; or thin ones about the midline."""
    anatomy, generator = patient(seed), np.random.default_rng((8, seed))
    size, spacing = ((24.0, 190.0, 190.0), (0.64, 0.64, 0.7)) if thin else ((350.0, 270.0, 110.0), (1.1, 1.1, 2.5))
    grid = lattice("CT", spacing, size, np.array([0.0, 0.0 if thin else 25.0, 0.0]))
    scan = draw_ct(generator, contrast_agent=False, table=True, **numbers)
    image = scan.acquire(anatomy, lambda points: points, grid, texture(seed))
    if not thin:
        image = resampled(image, 1.25)
    grid = image.grid
    return Volume(f"simulated {seed} ({scan.noise_hu:.0f} HU noise)", image, vertebrae(anatomy, grid))


def simulated_mr(seed: int, contrast: str, cubes: bool = True) -> Volume:
    """Slices of 4 mm, and then resampled to 1 mm like most of the real volumes."""
    anatomy, generator = patient(seed), np.random.default_rng((9, seed))
    thick = lattice("MR", (0.75, 0.75, 4.0), (210.0, 190.0, 88.0), np.array([0.0, -5.0, 0.0]))
    image = draw_mr(generator, contrast).acquire(anatomy, lambda points: points, thick, texture(seed))
    if cubes:
        image = resampled(image, 1.0)
    return Volume(f"{contrast} simulated {seed}", image, vertebrae(anatomy, image.grid))


# -- measured -------------------------------------------------------------------------------------------------------------
def quartiles(values: np.ndarray, digits: int) -> str:
    if values.size < 20:
        return "-"
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def deviation(values: np.ndarray) -> np.ndarray:
    """Standard deviation in 3 x 3 x 3 voxels."""
    mean = ndimage.uniform_filter(values, 3)
    return np.sqrt(np.maximum(ndimage.uniform_filter((values) ** 2, 3) - mean**2, 0) * 27 / 26)


class Measured:
    def __init__(self, volume: Volume) -> None:
        grid, labels = volume.image.grid, volume.labels.data[0].numpy()
        self.values = volume.image.data[0].double().numpy()
        self.spacing = grid.spacing_mm
        self.depth = ndimage.distance_transform_edt(labels > 0, sampling=self.spacing)
        self.around = ndimage.distance_transform_edt(labels == 0, sampling=self.spacing) < 20
        index = [np.unravel_index(np.argmax(np.where(labels == k, self.depth, 0)), labels.shape) for k in volume.labels.ids()]
        centres = np.array(index) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        self.centres = centres[np.argsort(centres[:, 2])]
        self.world = grid.points().numpy()
        self.sd = deviation(self.values)

    def boxes(self, places: np.ndarray, low: tuple[float, float, float], high: tuple[float, float, float]) -> list[np.ndarray]:
        """Voxels in a box about each place, RAS mm."""
        out = []
        for place in places:
            offset = self.world - place[:, None, None, None]
            inside = [(offset[d] >= low[d]) & (offset[d] <= high[d]) for d in range(3)]
            out.append(self.values[inside[0] & inside[1] & inside[2]])
        return out

    def discs(self) -> np.ndarray:
        return np.concatenate(self.boxes((self.centres[1:] + self.centres[:-1]) / 2, (-3, -3, -1.6), (3, 3, 1.6)))

    def gradient(self) -> str:
        part = self.values[self.around]
        low, high = np.percentile(part, (1, 99))
        size = np.sqrt(sum(g**2 for g in np.gradient(self.values.clip(low, high), *self.spacing)))[self.around]
        return " / ".join(f"{100 * v / (high - low):.1f}" for v in np.percentile(size, (50, 90)))


def ct_row(volume: Volume) -> list[str]:
    m = Measured(volume)
    smooth = ndimage.gaussian_filter(m.values, 2.0 / m.spacing)
    found = {}
    for name, low, high in (("muscle", 20, 80), ("fat", -130, -70)):
        found[name] = ndimage.binary_erosion((smooth > low) & (smooth < high), iterations=2)
    rim = (m.depth > 0) & (m.depth < 2.0)
    noise = np.percentile(m.sd[found["fat"]], 25)
    parts = [m.values[m.depth > 4], m.values[rim], m.values[found["muscle"]], m.values[found["fat"]], m.discs()]
    return [volume.name, *(quartiles(p, 0) for p in parts), f"{noise:.0f}", m.gradient()]


def mr_row(volume: Volume) -> list[str]:
    """Relative to the median of marrow; the darkest percentile is taken as 0."""
    m = Measured(volume)
    m.values = m.values - np.percentile(m.values, 1)
    marrow = m.depth > 4
    unit = np.median(m.values[marrow])
    canal = np.concatenate([p[p >= np.percentile(p, 95)] for p in m.boxes(m.centres, (-3, -40, -5), (3, -15, 5)) if p.size])
    sides = [p for x in (-34, 34) for p in m.boxes(m.centres, (x - 3, -6, -5), (x + 3, 6, 5))]
    back = [p[p >= np.percentile(p, 90)] for p in m.boxes(m.centres, (-15, -100, -5), (15, -50, 5)) if p.size]
    parts = [m.values[marrow], m.discs(), canal, np.concatenate(sides), np.concatenate(back) if back else np.empty(0)]
    noise = np.percentile(m.sd[marrow], 25) / unit
    return [volume.name, *(quartiles(p / unit, 2) for p in parts), f"{noise:.3f}", m.gradient()]


def table(head: tuple[str, ...], rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


# -- shown ----------------------------------------------------------------------------------------------------------------
def cut(volume: Volume, normal: str, size_mm: tuple[float, float]) -> np.ndarray:
    """A sagittal or axial slice at 0.6 mm through the middle of the labelled bodies, front or right side to the left."""
    centres = Measured(volume).centres
    centre = centres[np.argmin(np.abs(centres[:, 2] - centres[:, 2].mean()))]
    if normal == "sagittal":
        across, up = np.array([0, -1.0, 0]), np.array([0, 0, 1.0])
        centre = centre + (centres.mean(0) - centre) * (1, 0, 0) + np.array([0, -15.0, 0])
    else:
        across, up = np.array([-1.0, 0, 0]), np.array([0, 1.0, 0])
    a, b = (np.arange(-s / 2, s / 2, 0.6) for s in size_mm)
    points = centre[:, None, None] + across[:, None, None] * a[None, None, :] - up[:, None, None] * b[None, :, None]
    flat = torch.as_tensor(points.reshape(3, -1), dtype=torch.float32)
    return sample(volume.image.data, volume.image.grid, flat, outside=float("nan"))[0].reshape(len(b), len(a)).numpy()


def picture(data: Path, path: Path) -> None:
    real_ct, real_mr = next(iter(real_cts(data))), next(iter(real_mrs(data)))
    dose = {"noise_hu": 24.0, "starvation": 1.5}  # about that of the real one
    ct, fine = simulated_ct(0, **dose), simulated_ct(0, thin=True, **dose)
    mrs = [simulated_mr(0, contrast, cubes=False) for contrast in ("t2", "water", "t1", "gre", "gre-out")]
    window: Callable[[np.ndarray], tuple[float, float]] = lambda s: (0.0, float(np.nanpercentile(s, 99.5)))  # noqa: E731
    sagittal, axial, short = (140.0, 180.0), (330.0, 240.0), (100.0, 100.0)
    panels = [
        ("real CT", cut(real_ct, "sagittal", sagittal), (-200.0, 500.0)),
        ("simulated CT", cut(fine, "sagittal", sagittal), (-200.0, 500.0)),
        ("real CT", cut(real_ct, "axial", axial), (-200.0, 300.0)),
        ("simulated CT", cut(ct, "axial", axial), (-200.0, 300.0)),
        ("real MR, T2", cut(real_mr, "sagittal", short), None),
        *((v.name.replace(" simulated 0", ", simulated MR"), cut(v, "sagittal", sagittal), None) for v in mrs),
    ]
    rows = panels[:4], panels[4:]
    scale = 15 / max(1.02 * sum(values.shape[1] for _, values, _ in row) for row in rows)  # inches per pixel, of all alike
    heights = [scale * max(values.shape[0] for _, values, _ in row) + 0.4 for row in rows]
    total = sum(heights) + 0.3
    figure = plt.figure(figsize=(15, total), facecolor="black")
    for k, row in enumerate(rows):
        x, top = 0.05, total - sum(heights[:k]) - 0.35
        for title, values, limits in row:
            high, wide = (scale * n for n in values.shape)
            axes = figure.add_axes((x / 15, (top - high) / total, wide / 15, high / total))
            low, most = limits or window(values)
            axes.imshow(np.nan_to_num(values, nan=low), cmap="gray", vmin=low, vmax=most)
            axes.set_title(title, color="white", fontsize=11)
            axes.set_axis_off()
            x += 1.02 * wide
    figure.text(0.01, 0.1 / total, CREDIT, color="white", fontsize=9)
    figure.savefig(path, dpi=90, facecolor="black")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("OSTEOMORPH_TEST_DATA"))
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--patients", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("name the folder of real volumes by --data or OSTEOMORPH_TEST_DATA")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with threads(1):
        ct = [ct_row(v) for v in real_cts(arguments.data)] + [ct_row(simulated_ct(k)) for k in range(arguments.patients)]
        mr = [mr_row(v) for v in real_mrs(arguments.data)]
        mr += [mr_row(simulated_mr(k, c)) for c in ("t2", "water", "gre", "t1") for k in range(arguments.patients)]
        text = "CT, HU: median [quartiles]\n\n"
        text += table(("volume", "marrow", "rim", "muscle", "fat", "disc", "noise", "gradient %/mm"), ct)
        text += "\n\nMR, relative to marrow: median [quartiles]\n\n"
        text += table(("volume", "marrow", "disc", "canal", "psoas", "back fat", "noise", "gradient %/mm"), mr) + "\n"
        print(text)
        (arguments.out / "realism.md").write_text(text, encoding="utf-8")
        picture(arguments.data, arguments.out / "realism.png")


if __name__ == "__main__":
    main()
