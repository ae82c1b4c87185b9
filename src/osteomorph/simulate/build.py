"""What differs between patients: drawn here, applied in the shapes."""

from dataclasses import dataclass
from typing import final

import numpy as np

LEVELS = 10
"""Most bones of the column: sacrum, six lumbar and three thoracic vertebrae."""

Row = tuple[float, ...]


@final
@dataclass(frozen=True)
class Build:
    """One patient; mm and degrees before ``scale``. The values given are those of an average adult without disease.

    Rows run from the sacrum up: entry k of ``discs`` and ``wear`` is the disc above bone k, of ``spurs`` bone k.
    """

    scale: float = 1.0
    half_width: float = 23.2
    """Of the body of L3."""
    half_depth: float = 17.3
    half_height: float = 13.7
    disc: float = 10.0
    """Height of the disc below L4, healthy."""
    discs: Row = (1.0,) * LEVELS
    """Height relative to that of a healthy disc."""
    wear: Row = (0.0,) * LEVELS
    """Degeneration, 0 to 1."""
    spurs: Row = (0.0,) * LEVELS
    """Radius of osteophytes at the end plates."""
    arthrosis: float = 0.0
    """Added to the radius of facets."""
    slope_deg: float = 33.0
    """Of the sacral end plate; it sets the lordosis."""
    incidence_deg: float = 50.0
    """Pelvic incidence; less the slope it is the pelvic tilt."""
    scoliosis_deg: float = 0.0
    """Largest sideways tilt of a vertebra."""
    scoliosis_phase: float = 0.0
    twist: float = 0.0
    """Axial rotation per sideways tilt."""
    process: float = 0.95
    """Length of processes."""
    lumbar: int = 5
    """Lumbar vertebrae, 4 to 6."""
    fused: int | None = None
    """Vertebra that does not move against the one below."""
    screws: tuple[int, ...] = ()
    """Vertebrae with pedicle screws."""
    hip_width: float = 1.0
    """Of the pelvis, relative."""
    neck_deg: float = 127.0
    """Angle of femoral neck and shaft."""
    fat: float = 12.0
    """Thickness under the skin of the back."""
    belly: float = 0.0
    """Added to the depth of the abdomen."""
    muscle: float = 1.0
    """Bulk, relative."""
    liver: float = 1.0
    kidneys: tuple[float, float] = (0.0, 0.0)
    """Height of the right and left one, added."""
    loops: tuple[Row, ...] = (
        (34.0, 52.0, 22.0, 15.0),
        (-30.0, 58.0, 8.0, 17.0),
        (8.0, 62.0, -22.0, 14.0),
        (46.0, 46.0, -28.0, 17.0),
        (-50.0, 44.0, -36.0, 15.0),
        (-60.0, 40.0, 34.0, 14.0),
        (4.0, 60.0, 48.0, 15.0),
        (78.0, 24.0, -10.0, 21.0),
        (-82.0, 20.0, -20.0, 18.0),
        (30.0, 60.0, 84.0, 18.0),
        (98.0, 22.0, -35.0, 20.0),
        (96.0, 26.0, 20.0, 19.0),
        (-98.0, 8.0, 20.0, 15.0),
        (-96.0, 14.0, -50.0, 15.0),
        (20.0, 76.0, 12.0, 15.0),
        (-32.0, 74.0, -30.0, 14.0),
        (58.0, 66.0, 6.0, 15.0),
        (-8.0, 72.0, -62.0, 16.0),
        (36.0, 62.0, -70.0, 14.0),
        (-62.0, 62.0, 6.0, 14.0),
        (-36.0, 72.0, 38.0, 14.0),
    )
    """Middle and radius of every loop of bowel."""

    @property
    def column(self) -> tuple[int, ...]:
        """Labels from the sacrum up to T10."""
        return (26, *range(19 + self.lumbar, 16, -1))

    @property
    def middle(self) -> int:
        """The last lumbar vertebra but one (of four or five) or two (of six): L4, or L3 when L5 is missing."""
        return 22 if self.lumbar == 4 else 23


def draw_build(generator: np.random.Generator) -> Build:
    """A patient from a population: most are healthy or mildly worn, some have a transition, a fusion or screws."""

    def between(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    def row(values: np.ndarray) -> Row:
        return tuple(float(v) for v in values)

    lumbar = int(generator.choice([5, 4, 6], p=[0.9, 0.05, 0.05]))
    mobile = range(20, 20 + lumbar)  # lumbar labels
    age = between(0.0, 1.0)
    # wear is worst at the two lowest discs and scatters between levels
    wear = np.array([1.0, 1.0, 0.8, 0.6, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4]) * age * generator.uniform(0.1, 1.2, LEVELS)
    wear = wear.clip(0, 1)
    spurs = (4.2 * wear * generator.uniform(0.2, 1.0, LEVELS)).clip(0, 3.6)
    scoliosis = between(-9.0, 9.0) if generator.random() < 0.25 else between(-2.0, 2.0)
    fused = int(generator.choice(mobile[:-1])) if generator.random() < 0.06 else None
    screws: tuple[int, ...] = ()
    if generator.random() < 0.08:
        first = int(generator.choice(mobile[1:-1]))
        screws = (first, first + 1)
    loops = tuple(
        (
            x + between(-9.0, 9.0),
            y + between(-3.0, 12.0),
            z + between(-8.0, 8.0),
            r * between(0.75, 1.2),
        )
        for x, y, z, r in Build.loops
    )
    return Build(
        scale=between(0.94, 1.06),
        half_width=between(22.2, 24.6),
        half_depth=between(16.4, 18.2),
        half_height=between(13.3, 14.6),
        disc=between(9.0, 11.0),
        discs=row((1 - 0.4 * wear) * generator.uniform(0.93, 1.07, LEVELS)),
        wear=row(wear),
        spurs=row(spurs),
        arthrosis=2.0 * age * between(0.0, 1.0),
        slope_deg=between(26.0, 40.0),
        incidence_deg=between(43.0, 58.0),
        scoliosis_deg=scoliosis,
        scoliosis_phase=between(-0.6, 0.6),
        twist=between(0.2, 0.7),
        process=between(0.85, 1.05),
        lumbar=lumbar,
        fused=fused,
        screws=screws,
        hip_width=between(0.95, 1.05),
        neck_deg=between(121.0, 133.0),
        fat=between(6.0, 24.0),
        belly=between(-12.0, 30.0),
        muscle=between(0.82, 1.12),
        liver=between(0.85, 1.1),
        kidneys=(between(-14.0, 10.0), between(-10.0, 14.0)),
        loops=loops,
    )
