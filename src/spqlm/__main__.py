"""`python -m spqlm` is `spq`."""

from spqlm.cli import main

if __name__ == "__main__":
    main()
