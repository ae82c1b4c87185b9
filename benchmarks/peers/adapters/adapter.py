"""What adapters share. It runs in the peers' environments and so needs numpy alone.

An adapter is a script `run_PEER.py PAIR OUT [--variant NAME] [--labels FILE]` that registers moving.nii.gz of a pair's folder
onto fixed.nii.gz, from the identity, and writes into OUT what `write` says. Threads: as OMP_NUM_THREADS says, and for ITK
ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS; the bench sets both.
"""

import argparse
import importlib.metadata
import json
import os
import time
from pathlib import Path

import numpy as np


class Run:
    """Arguments of an adapter, and a clock: `with run:` around the registration call alone."""

    def __init__(self, *variants):
        parser = argparse.ArgumentParser()
        parser.add_argument("pair", type=Path)
        parser.add_argument("out", type=Path)
        parser.add_argument("--variant", default=variants[0], choices=variants)
        parser.add_argument("--labels", type=Path, help="label map of the moving image")
        options = parser.parse_args()
        self.pair, self.out = options.pair.absolute(), options.out.absolute()
        self.variant, self.labels = options.variant, options.labels and options.labels.absolute()
        self.threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        self.seconds = 0.0

    @property
    def fixed(self):
        return str(self.pair / "fixed.nii.gz")

    @property
    def moving(self):
        return str(self.pair / "moving.nii.gz")

    def __enter__(self):
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self._began

    def write(self, displacement, frame, settings, packages, inverse=None, inverse_on="moving", bones=None):
        """displacement.npy, meta.json, and inverse.npy where there is one.

        displacement: (i, j, k, 3), moving point - fixed point at the voxels of the fixed image, axes as in its file; or the
        name of a file in OUT that osteomorph reads.
        frame: "LPS" or "RAS", mm along world axes; "voxels" along the array axes; None for a file that says it itself.
        inverse: the same from moving to fixed points, at the voxels of the image that ``inverse_on`` names.
        bones: file in OUT with the bones that the method found itself, on the fixed grid.
        """
        meta = {"frame": frame, "seconds": round(self.seconds, 3), "threads": self.threads, "settings": settings}
        meta["versions"] = {name: importlib.metadata.version(name) for name in packages}
        for name, field in (("displacement", displacement), ("inverse", inverse)):
            if isinstance(field, np.ndarray):
                np.save(self.out / f"{name}.npy", np.ascontiguousarray(field, dtype=np.float32))
            if field is not None:
                meta[name] = field if isinstance(field, str) else f"{name}.npy"
        if inverse is not None:
            meta["inverse_on"] = inverse_on
        if bones is not None:
            meta["bones"] = bones
        (self.out / "meta.json").write_text(json.dumps(meta, indent=1))
