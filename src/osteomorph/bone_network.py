"""The shipped network: from one image of either modality to bone, to each bone's middle, and to features to match by.

Residual U-net (Ronneberger et al. 2015; He et al. 2016) at 2 mm. No layer is normalised over space, so that what is found at a
place does not depend on how much air or anatomy the rest of the field of view holds.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, interpolate, layer_norm, normalize, pad, relu

from osteomorph.errors import InputError
from osteomorph.similarity import PAIRS, mind_ssc

SPACING_MM = 2.0
"""Of the lattice the network works on; its axes run to the right, anterior and superior."""

WIDTHS = (16, 32, 64, 80)
"""Channels at 2, 4, 8 and 16 mm."""

FEATURES = 16
FEATURE_STRIDE = 2
"""Features have one vector every 4 mm."""

OFFSET_UNIT_MM = 20.0
LOGIT_UNIT = 4.0

MIDDLE, CONTRAST = 0.35, 4.0
"""Intensities are taken to (v - MIDDLE) * CONTRAST first."""

SMALL = 0.3
"""First weights of the second convolution of a residual block that is not normalised, relative."""

EDGE = 0.2
"""Difference of two intensities, two voxels apart, that counts as an edge."""

MODALITIES = ("MR", "CT")

KINDS = ("vertebra", "sacrum", "hip", "femur", "rib", "other")
"""Of bones, in the order of what `BoneNetwork.kind_head` answers."""

MEASURES = 4
"""Numbers about a bone's size that the kind is told by too; see `bone_kinds`."""

HU_FROM = -80.0
"""An image with values below is taken for a CT: the signal of MR has no sign."""

HU_KNOTS, HU_VALUES = (-1000.0, -200.0, 200.0, 1200.0), (0.0, 0.1, 0.6, 1.0)
"""CT to [0, 1], linear between: half of the range for soft tissue, most of the rest for bone."""

MR_PERCENTILES = (1.0, 99.5)
"""Of what is brighter than the background, to 0 and 1."""


def is_ct(data: Float[Tensor, "*s"]) -> bool:
    """Whether intensities are Hounsfield units."""
    return float(data.min()) < HU_FROM


def unit_intensities(data: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Intensities of a CT in HU or of an MR, in [0, 1]; in training and in use. An image without contrast is 0."""
    if is_ct(data):
        knots, values = (torch.tensor(row, dtype=data.dtype, device=data.device) for row in (HU_KNOTS, HU_VALUES))
        inside = data.clamp(HU_KNOTS[0], HU_KNOTS[-1])
        out = torch.zeros_like(inside)
        for a, b, u, v in zip(knots, knots[1:], values, values[1:], strict=False):
            out += (inside.clamp(a, b) - a) * ((v - u) / (b - a))
        return out
    low = float(data.min())
    some = data.flatten()[:: max(1, data.numel() // 100_000)].cpu().float().numpy()
    seen = some[some > low + 1e-6 * max(1.0, abs(low))]
    if seen.size == 0:
        return torch.zeros_like(data)
    start, end = np.percentile(seen, MR_PERCENTILES)
    if not end > start:
        return torch.zeros_like(data)
    return ((data - float(start)) / float(end - start)).clamp(0, 1)


@final
class Found(NamedTuple):
    """What the network says of a batch of images at 2 mm.

    bone: logit. offset_mm: from a voxel to the middle of the bone it belongs to, along the lattice's axes; at most
    about 48 mm long, after which it is the direction that counts. features: of unit length, at every second voxel.
    """

    bone: Float[Tensor, "b 1 i j k"]
    offset_mm: Float[Tensor, "b 3 i j k"]
    features: Float[Tensor, "b f p q r"]


@final
class ChannelNorm(nn.Module):
    """Layer normalisation of each voxel's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c i j k"]) -> Float[Tensor, "b c i j k"]:
        last = x.permute(0, 2, 3, 4, 1)  # no copy where channels lie last in memory
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return layer_norm(last, self.weight.shape, weight, bias).permute(0, 4, 1, 2, 3)


@final
class Residual(nn.Module):
    """Two convolutions of 3 x 3 x 3 with ReLU around which their input is added. normalised: by `ChannelNorm`."""

    def __init__(self, channels: int, normalised: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(ChannelNorm(channels) if normalised else nn.Identity() for _ in range(2))
        for convolution, share in ((self.first, 1.0), (self.second, 1.0 if normalised else SMALL)):
            _started(convolution, share)

    def forward(self, x: Tensor) -> Tensor:
        return relu(x + self.norms[1](self.second(relu(self.norms[0](self.first(x))))))


def _started(convolution: nn.Conv3d, share: float = 1.0, gain: Literal["relu", "linear"] = "relu") -> nn.Conv3d:
    """First weights that keep the variance (He et al. 2015), times ``share``."""
    nn.init.kaiming_normal_(convolution.weight, nonlinearity=gain)
    with torch.no_grad():
        convolution.weight *= share
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution


@final
class FeatureNetwork(nn.Module):
    """Prepared intensities at 2 mm -> features at 4 mm, whatever the modality: it sees MIND-SSC, not intensities."""

    def __init__(self, features: int, widths: tuple[int, int] = (32, 48)) -> None:
        super().__init__()
        fine, coarse = widths
        self.shrink = nn.Conv3d(len(PAIRS), fine, 2, stride=2)
        self.norm = ChannelNorm(fine)
        self.before = Residual(fine, True)
        self.down, self.middle, self.up = (
            nn.Conv3d(fine, coarse, 2, stride=2),
            Residual(coarse, True),
            nn.Conv3d(coarse, fine, 1),
        )
        self.after = Residual(fine, True)
        self.head = nn.Conv3d(fine, features, 1)

    def forward(self, images: Float[Tensor, "b 1 i j k"]) -> Float[Tensor, "b f p q r"]:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            spare = [-n % 4 for n in images.shape[2:]]
            images = pad(images.float(), [w for n in reversed(spare) for w in (0, n)], mode="replicate")
            described = mind_ssc(images[0])[None] if len(images) == 1 else torch.stack([mind_ssc(image) for image in images])
            described = described.contiguous(memory_format=torch.channels_last_3d).mul_(2).sub_(1)
        x = relu(self.norm(self.shrink(described)))
        x = self.before(x)
        wide = self.middle(self.down(x))
        x = self.after(x + interpolate(self.up(wide), scale_factor=2, mode="trilinear"))
        return normalize(self.head(x).float(), dim=1)


@final
class BoneNetwork(nn.Module):
    """Prepared intensities (b, 1, i, j, k) at 2 mm, RAS -> `Found`, for any shape.

    ct: (b), whether each image is a CT. CT and MR have a first layer each, and at every coarser level a shift each.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS, features: int = FEATURES) -> None:
        super().__init__()
        self.widths, self.feature_channels = tuple(widths), features
        pairs = list(pairwise(widths))
        self.first = nn.ModuleList(nn.Conv3d(2, widths[0], 3, padding=1) for _ in MODALITIES)
        for first in self.first:  # kinks of the ReLU spread over the intensities
            nn.init.uniform_(_started(first).bias, -1.0, 1.0)  # type: ignore[arg-type]
        self.shift = nn.ParameterList(torch.zeros(len(MODALITIES), b) for _, b in pairs)
        self.shrink = nn.ModuleList(_started(nn.Conv3d(a, b, 2, stride=2), gain="linear") for a, b in pairs)
        self.down = nn.ModuleList(Residual(b, False) for _, b in pairs)
        self.grow = nn.ModuleList(_started(nn.Conv3d(b, a, 1), gain="linear") for a, b in pairs)
        self.last = _started(nn.Conv3d(widths[0], widths[0], 3, padding=1))
        self.up = nn.ModuleList(Residual(a, False) for a in widths[1:-1])
        self.bone_head = nn.Conv3d(widths[0], 1, 1)
        self.offset_head = nn.Conv3d(widths[0], 3, 1)
        self.matching = FeatureNetwork(features)
        self.kind_head = nn.Linear(sum(widths[-2:]) + MEASURES, len(KINDS))
        for parameter in self.kind_head.parameters():  # trained last, on what the rest knows: until then no kind is told
            nn.init.zeros_(parameter)

    def forward(self, images: Float[Tensor, "b 1 i j k"], ct: Bool[Tensor, " b"]) -> Found:
        answer = self.bones(images, ct)
        return Found(answer[:, :1], answer[:, 1:], self.features(images))

    def features(self, images: Float[Tensor, "b 1 i j k"]) -> Float[Tensor, "b f p q r"]:
        """Of `Found`."""
        few = (slice(None), slice(None), *(slice(-(-n // FEATURE_STRIDE)) for n in images.shape[2:]))
        return self.matching(images)[few]

    @property
    def context_stride(self) -> int:
        """Voxels between two vectors of the context."""
        return int(2 ** len(self.down))

    def bones(self, images: Float[Tensor, "b 1 i j k"], ct: Bool[Tensor, " b"]) -> Float[Tensor, "b 4 i j k"]:
        """Logit and offset of `Found`."""
        return self.bones_in_context(images, ct)[0]

    def bones_in_context(
        self, images: Float[Tensor, "b 1 i j k"], ct: Bool[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b 4 i j k"], Float[Tensor, "b c p q r"]]:
        """The same, and at every `context_stride`-th voxel what surrounds it: the coarsest level and the one above."""
        shape = images.shape[2:]
        step = 2 ** len(self.down)
        spare = [-n % step for n in shape]
        x = pad(images, [w for n in reversed(spare) for w in (0, n)]) if any(spare) else images
        x = torch.cat([CONTRAST * (x - MIDDLE), edges(x)], 1).contiguous(memory_format=torch.channels_last_3d)
        kinds = ct.long()
        x = relu(torch.cat([self.first[int(kind)](image[None]) for image, kind in zip(x, kinds, strict=True)]))
        kept: list[Tensor] = []
        for shrink, shift, block in zip(self.shrink, self.shift, self.down, strict=True):
            kept.append(x)
            x = shrink(x)
            x = block(x + shift[kinds].to(x.dtype)[:, :, None, None, None])
        context = torch.cat([x, avg_pool3d(kept[-1], 2)], 1).float()
        for level in reversed(range(len(self.down))):
            x = kept.pop() + interpolate(self.grow[level](x), scale_factor=2, mode="trilinear")
            x = self.up[level - 1](x) if level else relu(self.last(x))
        inner = (slice(None), slice(None), *(slice(n) for n in shape))
        logit, offset = self.bone_head(x)[inner].float(), self.offset_head(x)[inner].float()
        return torch.cat([LOGIT_UNIT * logit, OFFSET_UNIT_MM * offset], 1), context


def edges(images: Float[Tensor, "b 1 i j k"]) -> Float[Tensor, "b 1 i j k"]:
    """Gradient magnitude between the neighbours of each voxel, in [0, 1): what CT and MR have in common from the start."""
    squares = torch.zeros_like(images)
    grown = pad(images, (1,) * 6, mode="replicate")
    for axis in (2, 3, 4):
        inner = [slice(None), slice(None), *(slice(1, -1),) * 3]
        lower, upper = list(inner), list(inner)
        lower[axis], upper[axis] = slice(None, -2), slice(2, None)
        squares += (grown[tuple(upper)] - grown[tuple(lower)]).square()
    return torch.tanh((squares + 1e-8).sqrt() / EDGE)


# -- on disk --------------------------------------------------------------------------------------------------------------
FORMAT = "osteomorph bone network 2"

SHIPPED = "bones.safetensors"
"""In the package, with its SHA-256 and its model card beside it."""


def save_bone_network(path: Path, network: BoneNetwork, about: Mapping[str, Any]) -> str:
    """Weights in float16, ``about`` (fit for JSON) in the header; whole or not at all. Returns the file's SHA-256."""
    from safetensors.torch import save

    from osteomorph.training_folder import write_whole

    tensors = {name: value.detach().cpu().half().contiguous() for name, value in network.state_dict().items()}
    plan = {"widths": network.widths, "features": network.feature_channels}
    content = save(tensors, {"format": FORMAT, "network": json.dumps(plan), "about": json.dumps(dict(about))})
    write_whole(Path(path), content)
    return hashlib.sha256(content).hexdigest()


def load_bone_network(path: Path, sha256: str | None = None) -> tuple[BoneNetwork, dict[str, Any]]:
    """The network in evaluation, float32, and what was said of it. sha256: of the file, checked where given.

    Raises InputError: missing, broken, another file than was shipped, or no network of this kind.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist. Give the bones.safetensors that osteomorph train-bones wrote, or none.")
    if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise InputError(f"{path} is not the file that was shipped: its SHA-256 differs. Install the package again.")
    try:
        with safe_open(path, "pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        if header.get("format") != FORMAT:
            raise InputError(f"{path} holds no bone network. Give the bones.safetensors that osteomorph train-bones wrote.")
        plan, about = json.loads(header["network"]), json.loads(header["about"])
        network = BoneNetwork(tuple(plan["widths"]), plan["features"])
        network.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError, json.JSONDecodeError):
        raise InputError(f"{path} cannot be read as a bone network. Copy it again, or train it again.") from None
    return network.to(memory_format=torch.channels_last_3d).eval(), about  # type: ignore[call-overload]


@lru_cache(maxsize=1)
def shipped_network() -> BoneNetwork:
    """The network that comes with the package, on the CPU; read once, and shared, so leave it as it is.

    Raises InputError: its file is missing or altered.
    """
    folder = resources.files("osteomorph") / "weights"
    with resources.as_file(folder / SHIPPED) as path, resources.as_file(folder / f"{SHIPPED}.sha256") as told:
        if not told.is_file():
            raise InputError(f"{told} does not exist. Install the package again.")
        return load_bone_network(path, told.read_text(encoding="ascii").split()[0])[0]
