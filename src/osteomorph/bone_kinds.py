"""What kind of bone each found one is: a linear answer to what the network saw around it, and to its size."""

from collections.abc import Mapping
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from osteomorph.bone_network import KINDS, SPACING_MM, BoneNetwork


@final
class Kind(NamedTuple):
    """name: one of `KINDS`. chance: of the name, in [0, 1]; 1 / 6 where the network was not taught kinds."""

    name: str
    chance: float


@torch.no_grad()
def kinds_of(network: BoneNetwork, context: Float[Tensor, "c p q r"], numbers: Int[np.ndarray, "i j k"]) -> dict[int, Kind]:
    """Of every bone of a lattice at 2 mm, RAS, the kind that is most likely. context: of `BoneNetwork.bones_in_context`."""
    told = described(context, numbers, network.context_stride)
    if not told:
        return {}
    chances = network.kind_head(torch.stack(list(told.values()))).softmax(1)
    return {k: Kind(KINDS[int(row.argmax())], float(row.max())) for k, row in zip(told, chances, strict=True)}


def described(
    context: Float[Tensor, "c p q r"], numbers: Int[np.ndarray, "i j k"], stride: int
) -> Mapping[int, Float[Tensor, " d"]]:
    """Number -> the mean of the context over the bone, then the logarithms of its volume in mm^3 and of its extents along the
    axes in mm."""
    out = {}
    for number, box in enumerate(ndimage.find_objects(numbers), 1):
        if box is None:
            continue
        ends = [(s.start // stride, -(-s.stop // stride)) for s in box]
        wide = tuple(slice(a * stride, b * stride) for a, b in ends)
        mask = torch.from_numpy((numbers[wide] == number).astype(np.float32))
        spare = [(b - a) * stride - n for (a, b), n in zip(ends, mask.shape, strict=True)]
        mask = pad(mask, [w for n in reversed(spare) for w in (0, n)])
        share = avg_pool3d(mask[None], stride)[0]
        seen = context[(slice(None), *(slice(a, b) for a, b in ends))]
        mean = (seen * share).sum((1, 2, 3)) / share.sum()
        extents = [SPACING_MM * (s.stop - s.start) for s in box]
        measures = torch.tensor([float(mask.sum()) * SPACING_MM**3, *extents]).log()
        out[number] = torch.cat([mean, measures])
    return out
