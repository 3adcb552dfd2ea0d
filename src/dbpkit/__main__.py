"""``python -m dbpkit``: the command line."""

from dbpkit.cli import main

if __name__ == "__main__":
    main()
