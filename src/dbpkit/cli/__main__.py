"""The command line as a module: ``python -m dbpkit.cli``, as launchers of several processes want it."""

from dbpkit.cli import main

if __name__ == "__main__":
    main()
