"""python -m osteomorph."""

from osteomorph.cli import main

if __name__ == "__main__":
    main()
