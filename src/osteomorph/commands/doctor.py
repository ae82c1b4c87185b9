"""osteomorph doctor: what this machine offers."""

import typer


def doctor() -> None:
    """Show versions, processor, memory, devices and extras, and check the arithmetic on one tiny transform."""
    from osteomorph.doctor import examine

    found = examine()
    width = max(len(one.topic) for one in found)
    for one in found:
        mark = {"ok": " ", "missing": "-", "broken": "!"}[one.verdict]
        typer.echo(f"{mark} {one.topic:<{width}}  {one.value}")
    broken = [one.topic for one in found if one.verdict == "broken"]
    if broken:
        typer.echo(f"warning: {', '.join(broken)}: see above (!).", err=True)
