"""What this machine offers a registration, and whether its arithmetic is sound."""

import os
import platform
import shutil
import tempfile
from importlib import metadata
from typing import Literal, NamedTuple, final

LIBRARIES = ("torch", "numpy", "scipy", "SimpleITK", "nibabel", "h5py", "pydantic", "typer", "rich", "matplotlib")
EXTRAS = {"itk-elastix": "rigid start with elastix: pip install 'osteomorph[elastix]'", "monai": "only the benchmarks use it"}


@final
class Finding(NamedTuple):
    """One line of the report; a registration can do without what is ``"missing"``, and not without what is ``"broken"``."""

    topic: str
    value: str
    verdict: Literal["ok", "missing", "broken"] = "ok"


def examine() -> list[Finding]:
    """Versions, processor, memory, devices, extras, the temporary folder and one tiny transform. Registers nothing."""
    return [*_versions(), *_machine(), *_devices(), *_extras(), _temporary_folder(), _self_check()]


def _versions() -> list[Finding]:
    from osteomorph import __version__

    found = [Finding("osteomorph", __version__), Finding("Python", f"{platform.python_version()} on {platform.platform()}")]
    for name in LIBRARIES:
        version = _installed(name)
        found.append(Finding(name, version or "not installed", "ok" if version else "broken"))
    return found


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> list[Finding]:
    import psutil
    import torch

    from osteomorph.memory import available_bytes

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()
    total = psutil.virtual_memory().total
    return [
        Finding("processor", f"{_processor()}, {psutil.cpu_count()} logical cores, {cores} usable here"),
        Finding("threads", f"{torch.get_num_threads()} (change with --threads)"),
        Finding("bf16 on CPU", "yes" if _bf16() else "no"),
        Finding("memory", f"{available_bytes() / 2**30:.1f} GB available of {total / 2**30:.1f} GB"),
    ]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _bf16() -> bool:
    """Whether the processor itself multiplies bfloat16; torch emulates it elsewhere, slowly."""
    import torch

    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        test = getattr(torch.cpu, name, None)
        if test is not None and test():
            return True
    return False


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [Finding("CUDA", "no device; registrations run on the CPU", "missing")]
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(Finding(f"CUDA {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"))
    return found


def _extras() -> list[Finding]:
    program = shutil.which("elastix")
    found = [Finding("elastix program", program or "not on the PATH", "ok" if program else "missing")]
    for name, use in EXTRAS.items():
        version = _installed(name)
        found.append(Finding(name, version or f"not installed ({use})", "ok" if version else "missing"))
    return found


def _temporary_folder() -> Finding:
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return Finding("temporary folder", f"{folder} is not writable ({error.strerror}); set TMPDIR", "broken")
    return Finding("temporary folder", f"{folder}, {shutil.disk_usage(folder).free / 2**30:.1f} GB free")


def _self_check() -> Finding:
    """One rotation about a point, there and back, on an oblique lattice: exact to rounding where torch is sound."""
    import numpy as np
    import torch

    from osteomorph.geometry import Grid
    from osteomorph.transforms import Displacement, Rigid

    turn = np.eye(4)
    turn[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    grid = Grid((6, 5, 4), turn @ np.diag([0.7, 1.1, 3.0, 1.0]))
    rigid = Rigid(np.linalg.inv(turn))
    points = grid.points(torch.float64).flatten(1)
    field = Displacement(rigid.displacement(grid, torch.float64), grid)
    error_mm = float((rigid.inverse()(field(points)) - points).norm(dim=0).max())
    if error_mm > 1e-9:
        return Finding("self-check", f"a rotation there and back is off by {error_mm:.3g} mm; reinstall torch", "broken")
    return Finding("self-check", "a tiny transform goes there and back")
