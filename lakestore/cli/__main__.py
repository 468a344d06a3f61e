"""`python -m lakestore.cli`."""

from lakestore.cli import main

if __name__ == "__main__":
    main()
