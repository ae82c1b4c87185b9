"""The methods of the bench: which adapter, in which environment, with which labels."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from environments import PEERS, python_of

ADAPTERS = Path(__file__).parent / "adapters"


@final
@dataclass(frozen=True)
class Method:
    """name: as the table shows it. adapter, variant: run_ADAPTER.py --variant VARIANT.

    labels: label maps it is given. role: a peer, ours, or a reference that no method is held to beat.
    """

    name: str
    adapter: str
    variant: str
    labels: Literal["none", "moving", "both"]
    role: Literal["peer", "ours", "reference"]


METHODS = {
    method.name: method
    for method in (
        Method("identity", "reference", "identity", "none", "reference"),
        Method("truth", "reference", "truth", "none", "reference"),
        Method("rigid-oracle", "reference", "oracle", "both", "reference"),
        Method("osteomorph", "osteomorph", "default", "moving", "ours"),
        Method("osteomorph-one-shot", "osteomorph", "one-shot", "moving", "ours"),
        Method("osteomorph-unlabelled", "osteomorph", "default", "none", "ours"),
        Method("osteomorph-unlabelled-one-shot", "osteomorph", "one-shot", "none", "ours"),
        Method("osteomorph-penalty", "osteomorph", "penalty", "moving", "ours"),
        Method("elastix-mi", "elastix", "mi", "none", "peer"),
        Method("elastix-mi-bending", "elastix", "bending", "none", "peer"),
        Method("elastix-mi-rigidity", "elastix", "rigidity", "moving", "peer"),
        Method("elastix-rigidity-light", "elastix", "light", "moving", "peer"),
        Method("elastix-rigidity-heavy", "elastix", "heavy", "moving", "peer"),
        Method("ants-syn", "ants", "syn", "none", "peer"),
        Method("greedy-nmi", "greedy", "nmi", "none", "peer"),
        Method("convexadam", "convexadam", "mind", "none", "peer"),
        Method("niftyreg", "niftyreg", "nmi", "none", "peer"),
    )
}


def command(method: Method, pair: Path, out: Path, environments: Path, labels: str) -> list[str]:
    """What runs a method. labels: name of the moving label map's file in the pair's folder.

    Raises FileNotFoundError, saying what to do, where its environment is missing.
    """
    python = sys.executable
    if method.adapter in PEERS:
        python = python_of(environments / method.adapter)
        if not Path(python).exists():
            raise FileNotFoundError(f"no environment; make it with environments.py {environments} {method.adapter}")
    elif method.adapter == "niftyreg":
        path = os.pathsep.join([os.environ.get("NIFTYREG", ""), os.environ.get("PATH", "")])
        if shutil.which("reg_f3d", path=path) is None:
            raise FileNotFoundError("no reg_f3d on the PATH nor in the folder that NIFTYREG names")
    script = ADAPTERS / f"run_{method.adapter}.py"
    given = ["--labels", str(pair / labels)] if method.labels == "moving" else []
    return [python, str(script), str(pair), str(out), "--variant", method.variant, *given]
