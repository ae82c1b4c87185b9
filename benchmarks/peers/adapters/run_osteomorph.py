"""This package: the whole command, from files to the output folder. OSTEOMORPH_NETWORK: see `run.py`."""

import os
import subprocess
import sys

from adapter import Run


def main():
    run = Run("default", "one-shot", "penalty", "diffeomorphic")
    settings = ["--plan", run.variant, "--initial", "none", "--threads", str(run.threads)]
    if run.labels is not None:
        settings += ["--moving-labels", str(run.labels), "--bones", "moving"]
    if network := os.environ.get("OSTEOMORPH_NETWORK"):
        settings += ["--network", network]
    command = [sys.executable, "-m", "osteomorph", "register", "-f", run.fixed, "-m", run.moving, *settings]
    with run:
        code = subprocess.run([*command, "-o", str(run.out / "result"), "--overwrite"]).returncode
    if code not in (0, 3):  # 3: written, and a quality check warns
        raise SystemExit(code)
    shown = {"plan": run.variant, "flagged": code == 3}
    found = "result/moved_labels.nii.gz"
    bones = found if run.labels is None and (run.out / found).exists() else None
    run.write("result/displacement.nii.gz", None, shown, ("osteomorph", "torch"), inverse="result/inverse.h5", bones=bones)


main()
