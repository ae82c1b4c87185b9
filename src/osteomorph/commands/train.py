"""osteomorph train: a network from a cohort of pairs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osteomorph.commands import options
from osteomorph.commands.guard import STOPPED

if TYPE_CHECKING:
    from osteomorph.plan import Plan


def train(
    cohort: Annotated[
        Path, typer.Option("-c", "--cohort", help="A cohort's folder, or its cohort.json.", show_default=False, readable=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the training; the same command goes on in it.", show_default=False)
    ],
    fold: Annotated[int, typer.Option("--fold", min=0, help="Which of the cohort's folds.")] = 0,
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan",
            metavar="NAME|FILE",
            help="A recipe's name, or a TOML or JSON file.",
            show_default="thesis-ws-rp, or that of --from",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Default: the plan's.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the first weights and of the order of pairs.")] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="NAME|FILE", help="Begin from trained weights: a file, or thesis-ws-rp.", show_default=False
        ),
    ] = None,
    simulate: Annotated[
        int | None,
        typer.Option(
            "--simulate",
            metavar="PATIENTS",
            min=1,
            help="Train on pairs drawn anew in every epoch from so many drawn lumbar patients; the cohort validates.",
            show_default=False,
        ),
    ] = None,
    exact_labels: Annotated[
        bool, typer.Option("--exact-labels", help="Not those with a segmentation's errors, where a cohort has both.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder for prepared pairs, to be shared.", show_default="OUTPUT/carried")
    ] = None,
    device: Annotated[options.Device, typer.Option("--device", help="Where to compute.")] = options.Device.auto,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. Default: torch decides.")] = None,
    json_log: options.JsonLog = None,
) -> None:
    """Train a network on a cohort's pairs. What was stopped goes on after its last whole epoch, by the same command.

    For `osteomorph register --weights`. Several processes at once: torchrun --nproc-per-node N -m osteomorph train ...
    """
    from osteomorph.cohort import read_cohort
    from osteomorph.parallel import leave
    from osteomorph.progress import Reporter
    from osteomorph.registration import chosen_device
    from osteomorph.threads import threads as limited
    from osteomorph.train import train as run
    from osteomorph.training_pairs import drawn_pairs

    chosen = _plan(plan, epochs, weights)
    pairs = read_cohort(cohort)
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes one speaks
    where = chosen_device(device.value)
    try:
        with limited(threads), Reporter(json_log if first else None) as progress:
            path = run(
                pairs,
                fold,
                chosen,
                output,
                seed=seed,
                cache=cache,
                observed=not exact_labels,
                device=where,
                progress=progress if first else None,
                weights=weights,
                simulated=None if simulate is None else drawn_pairs(simulate, chosen, seed, where),
            )
    except (KeyboardInterrupt, SystemExit) as error:
        told = f"osteomorph: stopped; run the same command again to go on after the last whole epoch in {output}."
        typer.echo(told, err=True)
        raise typer.Exit(STOPPED if isinstance(error, KeyboardInterrupt) else int(error.code or STOPPED)) from None
    finally:
        leave()
    if first:
        _show(path)


def _plan(name: str | None, epochs: int | None, weights: Path | None) -> "Plan":
    from osteomorph.network import load_network
    from osteomorph.registration import as_plan

    chosen = load_network(weights)[1] if weights is not None and name is None else as_plan(name or "thesis-ws-rp")
    if epochs is not None:
        chosen = chosen.model_copy(update={"train": chosen.train.model_copy(update={"epochs": epochs})})
    return chosen


def _show(path: Path) -> None:
    from osteomorph.network import load_network

    _, plan, about = load_network(path)
    typer.echo(f"\nplan     {plan.name}, fold {about['fold']}, {about['train']} pairs, {about['epochs']} epochs")
    typer.echo(f"seconds  {about['seconds']:.0f}")
    typer.echo(f"best     epoch {about['best_epoch']}, validation loss {about['validation_loss']:.5g}")
    names = sorted(file.name for file in path.parent.iterdir() if file.is_file())
    typer.echo(f"files    {', '.join(names)}\n         in {path.parent}")
