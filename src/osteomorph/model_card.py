"""What to know of trained weights before they are used, as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from osteomorph.network import UNet
from osteomorph.plan import Plan


def model_card(network: UNet, plan: Plan, about: Mapping[str, Any], log: Sequence[Mapping[str, float]]) -> str:
    """about: as stored with the weights. log: one row an epoch."""
    count = sum(weight.numel() for weight in network.parameters())
    weights = {name: value for name, value in plan.refine.weights if value > 0}
    best = next(row for row in log if row["epoch"] == about["best_epoch"])
    names = ", ".join(about["names"].values()) or "none named"
    made = ", ".join(f"{name} {value}" for name, value in about["cohort"].items()) or "nothing stated"
    shape = " x ".join(map(str, plan.prepare.shape)) if plan.prepare.shape else "that of the fixed image"
    curves = [f"| {name} | {_value(best.get(name))} | {_value(log[-1].get(name))} |" for name in best if name != "epoch"]
    return "\n".join(
        [
            f"# {plan.name}, fold {about['fold']}",
            "",
            f"A 3-D UNet ({plan.network.kind}, {plan.network.channels} channels, {plan.network.norm} normalisation, "
            f"{count} weights) that predicts the displacement in mm from a fixed and a rigidly started moving image, for "
            "`osteomorph register --weights`.",
            "",
            "## Data",
            "",
            f"Trained on {about['train']} pairs ({about['pairs']}), validated on {about['validation']}, with {about['labels']} "
            f"labels. Bones: {names}. The cohort says of itself: {made}. Digest of the fold: `{about['cohort_sha256'][:16]}`.",
            "",
            "## Training",
            "",
            f"- Loss: {', '.join(f'{value:g} x {name}' for name, value in weights.items())}, "
            f"bins {plan.refine.bins}, rigid mask from the {plan.refine.rigid_frame} labels",
            f"- Images: {plan.prepare.spacing_mm:g} mm, shape (AP, IS, LR) {shape}, "
            f"percentiles {plan.prepare.percentiles[0]:g} and {plan.prepare.percentiles[1]:g} to 0 and 1",
            f"- Adam, learning rate {plan.train.learning_rate:g}, betas {plan.train.betas}, "
            f"{about['epochs']} epochs, one pair a step",
            f"- Seed {about['seed']}, {about['seconds']:.0f} s, osteomorph {about['version']}",
            f"- Plan: `{plan.digest()[:16]}`, whole in the header of the weights and in `train.json`",
            "",
            f"| | epoch {about['best_epoch']} (these weights) | epoch {about['epochs']} (last) |",
            "|---|---|---|",
            *curves,
            "",
            "## Licence",
            "",
            "Weights made by osteomorph carry no licence of their own: that of the images they were trained on decides.",
            "",
            "## Limits",
            "",
            "- For images prepared as above and like those of the cohort: other contrasts, parts of the body or fields of view "
            "were never seen.",
            "- It starts from a rigid alignment and corrects what is left; it does not find a failed start.",
            "- The field is not invertible by construction, and bones are as rigid as the loss made them, not exactly.",
            "- Not a medical device.",
            "",
        ]
    )


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
