"""A registration on disk: the output folder, from which it can be checked, used and repeated."""

import platform
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from osteomorph import __version__
from osteomorph.allocation import give_back_freed_memory
from osteomorph.geometry import Grid
from osteomorph.io import OutputFolder, write_displacement, write_image, write_json, write_transform
from osteomorph.memory import peak_bytes
from osteomorph.report import REPORT, material_of, write_report
from osteomorph.threads import meanwhile, spread

if TYPE_CHECKING:
    from osteomorph.result import Registration

LIBRARIES = ("torch", "numpy", "scipy", "SimpleITK", "nibabel")


def write_result(registration: "Registration", folder: Path, overwrite: bool, command: Sequence[str] | None) -> Path:
    """Every file of the output contract, whole or not at all."""
    began = time.perf_counter()
    with OutputFolder(folder, overwrite) as output:
        out = output.path
        with meanwhile(partial(_without_warp, registration)):
            _ = registration.warp  # what most files are made of
        for _ in spread(lambda part: part(registration, out), (_write_backward, _write_moved)):
            give_back_freed_memory()
        with meanwhile(partial(_write_forward, registration, out)):
            bones = [{**bone.as_json(), **_sureness(registration, bone.label)} for bone in registration.bones]
            told = {"exact": registration.exact is not None, "from": _origin(registration)}
            write_json(out / "bones.json", {**told, "frame": "RAS mm, fixed -> moving", "bones": bones})
            content = describe(registration, command)
            write_report(out / REPORT, material_of(registration, folder.resolve().name, content, bones))
        content["seconds"]["write"] = round(time.perf_counter() - began, 3)
        write_json(out / "result.json", content)
    return folder


def _write_backward(registration: "Registration", out: Path) -> None:
    write_transform(out / "inverse.h5", registration.stored_inverse)


def _write_forward(registration: "Registration", out: Path) -> None:
    write_displacement(out / "displacement.nii.gz", registration.stored, registration.case.fixed.grid)
    write_transform(out / "transform.h5", registration.stored)


def _write_moved(registration: "Registration", out: Path) -> None:
    write_image(out / "moved.nii.gz", registration.moved)
    if registration.moved_labels is not None:
        write_image(out / "moved_labels.nii.gz", registration.moved_labels)


def _without_warp(registration: "Registration") -> None:
    """What can be made beside the warp: the check of the bones' transform, and what the report shows of the rigid start."""
    if registration.exact is not None:
        _ = registration.exact.certificate
    _ = registration.before


def describe(registration: "Registration", command: Sequence[str] | None = None) -> dict[str, Any]:
    """What result.json holds."""
    case, plan, start, history = registration.case, registration.plan, registration.start, registration.history
    return {
        "version": __version__,
        "versions": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: version(name) for name in LIBRARIES},
        },
        "command": list(command) if command is not None else None,
        "direction": "transform.h5 and displacement.nii.gz map fixed points to moving points; inverse.h5 maps back",
        "units": "mm; RAS+ in JSON files and in displacement.nii.gz (intent 1006), LPS inside ITK .h5 files",
        "exact": registration.exact is not None,
        "bones_from": _origin(registration),
        "seed": plan.seed,
        "device": registration.device,
        "threads": torch.get_num_threads(),
        "inputs": registration.hashes,
        "grids": {"fixed": _grid(case.fixed.grid), "moving": _grid(case.moving.grid)},
        "moved": {
            "interpolation": plan.interpolation,
            "outside": float(case.moving.data.min()),
            "dtype": str(case.moving.stored),
        },
        "start": {"method": start.method, "score": start.score, "matrix": start.rigid.matrix.tolist()},
        "plan": plan.model_dump(mode="json"),
        "plan_sha256": plan.digest(),
        "terms": {"first": history[0], "last": history[-1]} if history else {},
        "metrics": registration.metrics,
        "certificate": registration.certificate,
        "seconds": {stage: round(value, 3) for stage, value in registration.seconds.items()},
        "peak_memory_bytes": peak_bytes(),
        "passed": registration.passed,
        "warnings": list(registration.warnings),
        "notes": list(registration.notes),
    }


def _origin(registration: "Registration") -> str | None:
    """Who said where bone is: the user's labels, the network in one of the images, or nobody."""
    if registration.found_in is not None:
        return f"network, {registration.found_in.side} image" if registration.found_in.confidence else None
    return "labels" if registration.rigid_labels else None


def _sureness(registration: "Registration", label: int) -> dict[str, float]:
    return {} if registration.found_in is None else {"confidence": registration.found_in.confidence[label]}


def _grid(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist(), "axcodes": grid.axcodes}
