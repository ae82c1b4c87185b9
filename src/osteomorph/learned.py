"""A trained network in a registration: the plan that goes with it, and its field."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.network import UNet, load_network, predict
from osteomorph.plan import Plan
from osteomorph.shipped import weights_file
from osteomorph.training_folder import sha256
from osteomorph.transforms import Displacement


@final
@dataclass(frozen=True, eq=False)
class Learned:
    """network: in evaluation. plan: of a registration with it. sha256: of the weights' file."""

    network: UNet = field(repr=False)
    plan: Plan
    sha256: str

    @classmethod
    def read(cls, path: Path, wanted: Plan | None = None) -> "Learned":
        """From weights.safetensors, or by the name of what comes with the package. The plan is the weights' own, or the
        wanted one with images prepared as in training; where it starts on labels, it starts on images where there are none.

        Raises InputError: no such weights, or a plan that cannot begin from a field.
        """
        path = weights_file(path)
        network, plan, _ = load_network(path)
        if plan.initialise.method == "labels":  # training had them; who registers may not
            start = plan.initialise.model_copy(update={"method": "auto"})
            plan = plan.model_copy(update={"initialise": start})
        if wanted is not None:
            if wanted.bones == "exact" or wanted.refine.field == "velocity":
                raise InputError(
                    f"The plan {wanted.name!r} cannot begin from a network's field. Use --plan penalty, or leave --plan out."
                )
            plan = wanted.model_copy(update={"prepare": plan.prepare, "network": plan.network})
        return cls(network, plan, sha256(path))

    def field_of(self, carried: Case) -> Displacement:
        """Fixed mm -> fixed mm, before the rigid start. carried: see `carried.on_fixed_grid`."""
        return predict(self.network.to(carried.fixed.data.device), carried)
