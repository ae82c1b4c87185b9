"""The 3-D UNet of the thesis (3.5): two images on one grid in, a displacement in mm out."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import pad, relu
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from osteomorph.bone_network import FORMAT as BONES
from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.plan import NetworkPlan, Plan
from osteomorph.shipped import shipped_names, weights_file
from osteomorph.transforms import Displacement

LEVELS = 4
"""Resolutions, each half the one above."""

GROUP = 4
"""Channels of a group under group normalisation."""


@final
class UNet(nn.Module):
    """(moving, fixed) -> vectors in mm along the array axes, for images of any shape.

    Kind ``"literal"`` with 4 channels has 79 307 weights, ``"deepreg"`` 138 043; the thesis tells of about 160 thousand and
    of a modified DeepReg, so neither is claimed to be its very network.

    The last layer starts at zero, so that an untrained network is the identity, exactly; it alone has a gradient in the
    first step, every weight from the second one on.

    Batch normalisation over one pair uses that pair's own statistics in training, and in evaluation their running mean
    (momentum 0.1, so about the last ten pairs). With ``norm="group"`` both are the same.
    """

    def __init__(self, plan: NetworkPlan | None = None) -> None:
        super().__init__()
        plan = plan or NetworkPlan()
        self.plan = plan
        self.checkpointing = False
        """Whether blocks are computed again in the backward pass."""
        widths = [plan.channels * 2**level for level in range(LEVELS)]
        block = {"literal": TwoConvolutions, "deepreg": Residual}[plan.kind]
        self.down = nn.ModuleList(block(a, b, plan.norm) for a, b in zip([2, *widths], widths, strict=False))
        kernel = {"literal": 2, "deepreg": 3}[plan.kind]
        fine_first = list(zip(widths[1:], widths, strict=False))
        self.widen = nn.ModuleList(
            nn.ConvTranspose3d(a, b, kernel, 2, (kernel - 1) // 2, kernel - 2) for a, b in reversed(fine_first)
        )
        self.up = nn.ModuleList(block(b, b, plan.norm) for _, b in reversed(fine_first))
        self.last = nn.Conv3d(widths[0], 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, images: Float[Tensor, "b 2 i j k"]) -> Float[Tensor, "b 3 i j k"]:
        shape = images.shape[2:]
        spare = [-n % 2 ** (LEVELS - 1) for n in shape]
        if any(spare):
            images = pad(images, [w for n in reversed(spare) for w in (0, n)], mode="replicate")
        kept: list[Tensor] = []
        x = images.to(next(self.down.parameters()).dtype)
        for level, block in enumerate(self.down):
            if level:
                kept.append(x)
                x = nn.functional.max_pool3d(x, 2)
            x = self._through(block, x)
        for widen, block in zip(self.widen, self.up, strict=True):
            x = self._through(block, widen(x) + kept.pop())
        with torch.autocast(x.device.type, enabled=False):  # 8 bits of a displacement would show in its derivatives
            return convolved(self.last, x.to(self.last.weight.dtype))[..., : shape[0], : shape[1], : shape[2]]

    def _through(self, block: nn.Module, x: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return block(x)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _kept_statistics(block)

        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _kept_statistics(block: nn.Module) -> Iterator[None]:
    """Running statistics stay: a block that is computed twice has seen its pair once."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm3d)]
    before = [(norm.momentum, int(norm.num_batches_tracked or 0)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(count)


SLOW_BELOW = 20_480
"""Torch does not give oneDNN a float32 convolution of one image with at most so many rows of voxels, channels included."""


def convolved(layer: nn.Conv3d, x: Float[Tensor, "b c i j k"]) -> Float[Tensor, "b d i j k"]:
    """``layer(x)``, of a 3 x 3 x 3 convolution. A small image in float32 goes in as two halves, for torch has a quick way
    for two images that it does not take for one: a tenth of the time, the same sums."""
    small = len(x) == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= SLOW_BELOW and x.shape[2] > 1
    quick = x.dtype == torch.bfloat16 or torch.is_autocast_enabled(x.device.type)
    if x.device.type != "cpu" or quick or not small:
        return layer(x)
    half = -(-x.shape[2] // 2)
    grown = pad(x, (0, 0, 0, 0, 1, 1 + x.shape[2] % 2))
    halves = torch.cat([grown.narrow(2, 0, half + 2), grown.narrow(2, half, half + 2)])
    out = nn.functional.conv3d(halves, layer.weight, layer.bias, padding=(0, 1, 1))
    return out.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None].narrow(2, 0, x.shape[2])


def _normalised(channels: int, norm: str) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    return nn.GroupNorm(max(1, channels // GROUP), channels)


@final
class Layer(nn.Module):
    """3 x 3 x 3 convolution and normalisation. The normalisation shifts, so the convolution has no bias of its own."""

    def __init__(self, before: int, after: int, norm: str) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(before, after, 3, padding=1, bias=False)
        self.norm = _normalised(after, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolved(self.convolution, x))


@final
class TwoConvolutions(nn.Module):
    """Two layers with ReLU, as the thesis is written."""

    def __init__(self, before: int, after: int, norm: str) -> None:
        super().__init__()
        self.first, self.second = Layer(before, after, norm), Layer(after, after, norm)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.second(relu(self.first(x), inplace=True)), inplace=True)


@final
class Residual(nn.Module):
    """One layer, then a pair around which its input is added: DeepReg's block (Fu et al., 2020)."""

    def __init__(self, before: int, after: int, norm: str) -> None:
        super().__init__()
        self.first, self.second, self.third = Layer(before, after, norm), Layer(after, after, norm), Layer(after, after, norm)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.first(x), inplace=True)
        return relu(self.third(relu(self.second(x), inplace=True)) + x, inplace=True)


# -- from a case to a warp ------------------------------------------------------------------------------------------------
Network = Callable[[Tensor], Tensor]


def warp(network: Network, case: Case, channels_last: bool = True, bf16: bool = False) -> Displacement:
    """The network's field of a carried case, on the fixed grid; carries a gradient where grad is on.

    case: prepared, the moving side on the fixed grid under the rigid start. Whatever the order of its array axes, the network
    sees them running to the right, anterior and superior, and its components are turned into the world (RAS) by the grid's
    directions: data in another orientation, or oblique, are the same to it.
    """
    grid = case.fixed.grid
    if not case.moving.grid.isclose(grid):
        raise ValueError("A network takes both images on one grid; carry the moving one onto the fixed grid first.")
    order, flips = _canonical(grid)
    images = torch.stack([case.moving.data[0], case.fixed.data[0]])
    images = images.permute(0, *[1 + axis for axis in order]).flip([1 + d for d in flips])[None]
    images = images.contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        along = network(images)[0]
    along = along.float().flip([1 + d for d in flips]).permute(0, *[1 + order.index(d) for d in range(3)])
    direction = grid.direction[:, order].copy()  # columns: what the network calls its three axes
    direction[:, flips] *= -1
    return Displacement(_turned(along, direction), grid)


def _turned(vectors: Tensor, direction: np.ndarray) -> Tensor:
    if np.allclose(direction, np.eye(3), atol=1e-12):
        return vectors.contiguous()
    matrix = torch.as_tensor(direction, dtype=vectors.dtype, device=vectors.device)
    return torch.einsum("wd,dijk->wijk", matrix, vectors)


def _canonical(grid: Grid) -> tuple[list[int], list[int]]:
    """Array axes in the order R, A, S, and which of these then run the other way."""
    order = [grid.axis(ends) for ends in ("LR", "PA", "IS")]
    return order, [d for d, axis in enumerate(order) if grid.direction[d, axis] < 0]


@torch.no_grad()
def predict(network: UNet, case: Case, bf16: bool = False) -> Displacement:
    """The network's field of a carried case in use: mm, on the fixed grid. The network itself is left as it is.

    bf16: whether layers but the last compute in bfloat16: a little less memory and, where it was tried, no less time.
    """
    device = case.fixed.data.device
    quick = folded(network).to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if bf16:
        quick.bfloat16().last.float()
    return warp(quick, case)


def folded(network: UNet) -> UNet:
    """A copy in evaluation, each batch normalisation folded into the convolution before it."""
    out = copy.deepcopy(network).eval()
    for layer in out.modules():
        if isinstance(layer, Layer) and isinstance(layer.norm, nn.BatchNorm3d):
            layer.convolution = fuse_conv_bn_eval(layer.convolution, layer.norm)
            layer.norm = nn.Identity()
    return out


def has_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 itself; where it does not, bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(tell()) for tell in told if tell is not None)


# -- on disk --------------------------------------------------------------------------------------------------------------
FORMAT = "osteomorph network 1"


def save_network(path: Path, network: UNet, plan: Plan, about: Mapping[str, Any]) -> None:
    """Weights as safetensors, the whole plan and ``about`` (fit for JSON) in their header; whole or not at all."""
    from safetensors.torch import save

    from osteomorph.training_folder import write_whole

    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    header = {"format": FORMAT, "plan": plan.model_dump_json(), "about": json.dumps(dict(about))}
    write_whole(Path(path), save(tensors, header))


def load_network(path: Path, device: torch.device | str = "cpu") -> tuple[UNet, Plan, dict[str, Any]]:
    """The network in evaluation, the plan it was trained by, and what was said of it.

    path: a file, or the name of one that comes with the package.
    Raises InputError where the file is missing, broken, or no network of this package.
    """
    from safetensors import SafetensorError, safe_open

    path = weights_file(Path(path))
    if not path.is_file():
        known = "".join(f", or {name}" for name in shipped_names())
        raise InputError(f"{path} does not exist. Give the weights.safetensors that osteomorph train wrote{known}.")
    try:
        with safe_open(path, "pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("format") == BONES:
            raise InputError(f"{path} holds a network that finds bones. Give it to --network.")
        if header.get("format") != FORMAT:
            raise InputError(f"{path} holds no network of osteomorph. Give weights.safetensors of osteomorph train.")
        plan, about = Plan.model_validate_json(header["plan"]), json.loads(header["about"])
        network = UNet(plan.network)
        network.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, RuntimeError, json.JSONDecodeError, ValidationError):
        raise InputError(f"{path} cannot be read as a network. Copy it again, or train it again.") from None
    return network.to(device).eval(), plan, about
