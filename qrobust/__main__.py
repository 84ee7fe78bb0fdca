"""`python -m qrobust` is the command line."""

from qrobust.cli import main

if __name__ == "__main__":
    main()
