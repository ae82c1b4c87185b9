"""osteomorph view: a result's page in the browser."""

from pathlib import Path
from typing import Annotated

import typer


def view(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Holds report.html or cohort.html.", show_default=False)],
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address, open no browser.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 0,
) -> None:
    """Open a result or a cohort in the browser; served on this machine alone, under a random token, until Ctrl-C."""
    import webbrowser

    from osteomorph.view import Server, first_page

    page = first_page(folder)
    with Server(folder, port) as server:
        address = server.url(page)
        typer.echo(f"view  {address}\n      Ctrl-C ends it")
        if not no_open:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
