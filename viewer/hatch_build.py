"""Builds the viewer into a wheel where npm is at hand; a wheel without it writes reports with pictures alone."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ViewerHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        viewer = Path(self.root) / "viewer"
        built = Path(self.root) / "src/osteomorph/report_assets/built/viewer.js"
        npm = shutil.which("npm")
        if version == "editable" or built.is_file() or npm is None:
            return
        try:
            subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--silent"], cwd=viewer, check=True, timeout=600)
            subprocess.run([npm, "run", "--silent", "build"], cwd=viewer, check=True, timeout=600)
        except (subprocess.SubprocessError, OSError) as error:
            print(f"The viewer was not built ({error}); reports will have pictures alone.", file=sys.stderr)
