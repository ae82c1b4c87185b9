"""What a tissue is to CT and MR, and the palettes that follow: Hounsfield units, and the MR signal of water and of fat.

Times are those at 3 T. Muscle, cord, blood, heart: Stanisz et al., MRM 54:507 (2005). Liver, spleen, kidney, pancreas, marrow:
de Bazelaire et al., Radiology 230:652 (2004). Cartilage, synovial fluid, fat and marrow fat: Gold et al., AJR 183:343 (2004).
Fat fraction and T2* of vertebral marrow: Karampinos et al., JMRI 47:332 (2018). Cortical bone: Du and Bydder, NMR Biomed 26:489
(2013). Discs: Watanabe et al., AJR 189:936 (2007). Trains of refocusing pulses lengthen the T2 of fat and moving
fluid; the values here are the apparent ones, set so that ratios of tissues come near those of real lumbar T2 and Dixon
water images (`benchmarks/realism.py`). Hounsfield units were set by the same table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, exp, radians, sin
from typing import NamedTuple, final

from osteomorph.simulate.anatomy import TISSUES, Look, Palette
from osteomorph.simulate.shapes import Real

FAT_T1_MS = 370.0
FAT_T2_MS = 115.0

FAT_HZ = 440.0
"""Between the main peaks of water and fat at 3 T."""

Textured = tuple[float, float, float, float]
NONE: Textured = (0.0, 0.0, 0.0, 0.0)


@final
class Tissue(NamedTuple):
    """Means, and the standard deviation that each texture (common, own, fine, fibre) adds.

    hu, hu_texture: Hounsfield units, no contrast agent.
    iodine_hu: what contrast agent adds.
    density: of protons, fluid 1; signal_texture is relative.
    t1_ms, t2_ms, t2_star_ms: of the water; fat has its own T1 and T2.
    fat: share of the protons in fat, and its texture.
    """

    hu: float
    hu_texture: Textured = NONE
    iodine_hu: float = 0.0
    density: float = 0.0
    t1_ms: float = 1000.0
    t2_ms: float = 50.0
    t2_star_ms: float = 25.0
    fat: float = 0.0
    signal_texture: Textured = NONE
    fat_texture: Textured = NONE


PROPERTIES: Mapping[str, Tissue] = {
    "air": Tissue(-1000),
    "skin": Tissue(30, (0, 12, 6, 0), 5, 0.70, 900, 30, 15, 0.10, (0, 0.08, 0, 0)),
    "fat": Tissue(-106, (3, 4, 4, 5), 1, 0.95, 1400, 40, 45, 0.92, (0, 0.04, 0.03, 0), (0, 0, -0.01, -0.02)),
    "muscle": Tissue(57, (3, 6, 4, -5), 8, 0.80, 1420, 42, 28, 0.06, (0.03, 0.08, 0, 0), (0, 0, 0.012, 0.02)),
    "ligament": Tissue(75, (0, 8, 0, 0), 5, 0.35, 700, 12, 4, 0.05, (0, 0.1, 0, 0)),
    "annulus": Tissue(95, (0, 8, 4, 0), 0, 0.60, 1100, 45, 20, 0.0, (0, 0.12, 0.04, 0)),
    "nucleus": Tissue(80, (3, 6, 3, 0), 0, 0.70, 1400, 95, 50, 0.0, (0.03, 0.08, 0.03, 0)),
    "dry nucleus": Tissue(92, (3, 9, 4, 0), 0, 0.64, 1150, 50, 22, 0.0, (0.03, 0.12, 0.04, 0)),
    "csf": Tissue(8, (0, 2, 0, 0), 0, 1.00, 4000, 1500, 300, 0.0, (0, 0.04, 0, 0)),
    "cord": Tissue(36, (0, 2, 0, 0), 4, 0.75, 990, 78, 45, 0.0, (0, 0.03, 0, 0.02)),
    "cartilage": Tissue(75, (0, 6, 0, 0), 2, 0.70, 1240, 38, 22, 0.0, (0, 0.06, 0, 0)),
    "fluid": Tissue(12, (0, 2, 0, 0), 0, 1.00, 3600, 770, 250, 0.0, (0, 0.03, 0, 0)),
    "cortex": Tissue(1000, (0, 90, 90, 0), 0, 0.14, 300, 1.0, 0.5, 0.10, (0, 0.1, 0, 0)),
    "sclerosis": Tissue(520, (20, 50, 40, 0), 0, 0.40, 1000, 30, 4, 0.20, (0.04, 0.1, 0.04, 0), (0, 0.04, 0, 0)),
    "marrow": Tissue(200, (14, 30, 42, 0), 12, 0.90, 1250, 45, 12, 0.45, (0.02, 0.05, 0.05, 0), (-0.02, 0.04, 0.02, 0)),
    "vessel": Tissue(45, (0, 2, 0, 0), 165, 0.95, 1930, 200, 45, 0.0, (0, 0.15, 0, 0)),
    "vein": Tissue(43, (0, 2, 0, 0), 120, 0.95, 1930, 110, 22, 0.0, (0, 0.15, 0, 0)),
    "kidney": Tissue(35, (2, 5, 2, 0), 125, 0.88, 1300, 80, 45, 0.0, (0.03, 0.08, 0, 0)),
    "liver": Tissue(60, (2, 4, 2, 0), 45, 0.80, 810, 34, 22, 0.04, (0.02, 0.05, 0.02, 0)),
    "spleen": Tissue(50, (1, 3, 2, 0), 70, 0.85, 1330, 61, 35, 0.0, (0.02, 0.04, 0.02, 0)),
    "heart": Tissue(45, (2, 4, 2, 0), 90, 0.80, 1470, 47, 28, 0.02, (0.02, 0.1, 0, 0)),
    "lung": Tissue(-830, (0, 30, 30, 0), 15, 0.20, 1200, 40, 1.0, 0.0, (0, 0.2, 0.1, 0)),
    "organ": Tissue(40, (3, 7, 4, 0), 55, 0.80, 725, 43, 25, 0.08, (0.04, 0.08, 0.03, 0)),
    "bowel": Tissue(22, (6, 18, 8, 0), 12, 0.80, 1000, 80, 18, 0.04, (0.08, 0.28, 0.08, 0)),
    "gas": Tissue(-960),
    "urine": Tissue(6, (0, 2, 0, 0), 0, 1.00, 3800, 900, 250, 0.0, (0, 0.02, 0, 0)),
    "metal": Tissue(6000),
    "table": Tissue(60),
}
assert tuple(PROPERTIES) == TISSUES

REFERENCE = ("fat", "muscle", "csf", "nucleus", "marrow")
"""The brightest of these sets the scale of an MR image."""


# -- CT -------------------------------------------------------------------------------------------------------------------
def ct_palette(marrow_hu: Real, cortex_hu: Real, muscle_hu: Real, iodine: Real) -> Palette:
    """Hounsfield units. iodine: contrast agent, 1 for a usual portal venous scan; texture of bone grows with its density."""
    own = {"marrow": marrow_hu, "cortex": cortex_hu, "muscle": muscle_hu, "sclerosis": 0.5 * (marrow_hu + cortex_hu)}
    out = {}
    for name, tissue in PROPERTIES.items():
        mean = own.get(name, tissue.hu)
        grow = mean / tissue.hu if name in ("marrow", "cortex", "sclerosis") else 1.0
        out[name] = Look(mean + iodine * tissue.iodine_hu, *(grow * sd for sd in tissue.hu_texture))
    return out


# -- MR -------------------------------------------------------------------------------------------------------------------
@final
@dataclass(frozen=True)
class Sequence:
    """A spin-echo train, or a spoiled gradient echo; ms and degrees."""

    gradient_echo: bool
    repetition_ms: float
    echo_ms: float
    flip_deg: float = 90.0

    def signal(self, t1_ms: Real, t2_ms: Real, t2_star_ms: Real) -> float:
        """Of unit proton density: (1 - E1) exp(-TE/T2), or Ernst's sin a (1 - E1) / (1 - cos a E1) exp(-TE/T2*)."""
        e1 = exp(-self.repetition_ms / t1_ms)
        if not self.gradient_echo:
            return (1 - e1) * exp(-self.echo_ms / t2_ms)
        a = radians(self.flip_deg)
        return sin(a) * (1 - e1) / (1 - cos(a) * e1) * exp(-self.echo_ms / t2_star_ms)


def mr_palettes(sequence: Sequence, marrow_fat: Real, marrow_t2_star_ms: Real, inflow: Real) -> tuple[Palette, Palette]:
    """Signal of water and of fat, both 0 or above, in units of the brightest tissue of REFERENCE.

    marrow_fat: fat fraction of marrow. inflow: fresh blood in a gradient echo, relative to blood at rest; in a spin echo
    blood flows out before its echo, and the less the slower it flows.
    """
    water, fat = {}, {}
    for name, tissue in PROPERTIES.items():
        fraction, t2_star = (marrow_fat, marrow_t2_star_ms) if name == "marrow" else (tissue.fat, tissue.t2_star_ms)
        density = tissue.density * _flow(name, sequence, inflow)
        w = density * sequence.signal(tissue.t1_ms, tissue.t2_ms, t2_star)
        fat_t2 = FAT_T2_MS if tissue.t2_ms > 5 else tissue.t2_ms  # that in cortex is as short-lived as the water there
        f = density * sequence.signal(FAT_T1_MS, fat_t2, t2_star)
        shades = list(zip(tissue.signal_texture, tissue.fat_texture, strict=True))
        water[name] = Look(w * (1 - fraction), *(w * ((1 - fraction) * s - g) for s, g in shades))
        fat[name] = Look(f * fraction, *(f * (fraction * s + g) for s, g in shades))
    scale = 1 / max(water[name].mean + fat[name].mean for name in REFERENCE)
    return mixed(water, scale), mixed(fat, scale)


def mixed(first: Palette, scale: float, second: Palette | None = None, share: float = 0.0) -> Palette:
    """scale * first + share * second, tissue by tissue."""
    if second is None:
        return {name: Look(*(scale * v for v in look)) for name, look in first.items()}
    return {
        name: Look(*(scale * v + share * w for v, w in zip(look, second[name], strict=True))) for name, look in first.items()
    }


def _flow(name: str, sequence: Sequence, inflow: float) -> float:
    if name == "vessel":
        return inflow if sequence.gradient_echo else 0.05
    if name == "vein":
        return 0.5 + 0.5 * inflow if sequence.gradient_echo else 0.15
    return 1.0
