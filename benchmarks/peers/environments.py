"""One virtual environment per peer, with pinned versions.

    python benchmarks/peers/environments.py DIR [elastix|ants|greedy|convexadam ...]

Makes DIR/NAME for each (all by default); one that is finished is kept. Needs Python 3.11 and the network; about 4 GB. Nothing
here needs a GPU: on Linux give pip the index of torch's CPU wheels where it would otherwise take CUDA's
(PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu). For NiftyReg no environment is made: its method runs where `reg_f3d`
is on the PATH, or in the folder that NIFTYREG names, and is left out elsewhere.
"""

import argparse
import subprocess
import sys
import venv
from pathlib import Path

PEERS = {
    "elastix": ("itk-elastix==0.25.4", "itk==5.4.7", "numpy==2.4.6"),
    "ants": ("antspyx==0.6.3", "numpy==2.3.5"),
    "greedy": ("picsl_greedy==1.4.0.3", "SimpleITK==2.5.7", "numpy==2.4.6"),
    "convexadam": ("convexAdam==0.2.0", "torch==2.13.0", "SimpleITK==2.5.7", "nibabel==5.4.2", "numpy==2.4.6", "scipy==1.17.1"),
}
"""Peer -> what is installed for it."""

DONE = "requirements.txt"
"""Written last: what an environment holds."""


def make(folder: Path, requirements: tuple[str, ...]) -> None:
    """An environment in ``folder``, unless one of the same requirements is there."""
    wanted = "\n".join(requirements) + "\n"
    mark = folder / DONE
    if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
        return
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([python_of(folder), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements], check=True)
    mark.write_text(wanted, encoding="utf-8")


def python_of(folder: Path) -> str:
    """The interpreter of an environment, as an absolute path."""
    scripts = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    return str(folder.absolute().joinpath(*scripts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("peers", nargs="*", metavar="peer", help=", ".join(PEERS))
    options = parser.parse_args()
    unknown = sorted(set(options.peers) - set(PEERS))
    if unknown:
        parser.error(f"There is no environment for {unknown[0]}. Choose from {', '.join(PEERS)}.")
    for name in options.peers or PEERS:
        make(options.folder / name, PEERS[name])
        print(name, python_of(options.folder / name), flush=True)


if __name__ == "__main__":
    main()
