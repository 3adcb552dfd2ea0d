"""What a process of a recipe does: a command, tests, or a script, where nothing of dbpkit has been imported.

The process is forked from one that has imported libraries and run nothing, because importing torch takes
longer than what a recipe is tried with.
"""

import os
import sys
import traceback

LIBRARIES = ["torch", "accelerate", "scipy.stats", "matplotlib.figure", "pydantic", "typer", "pytest"]
"""What the first process imports; nothing of dbpkit, whose registries must not know the recipe yet."""


def run(kind: str, arguments: list[str], where: str, path: list[str], env: dict[str, str], said: str) -> None:
    """Does what ``python -m dbpkit``, ``python -m pytest`` or ``python -c`` does, and ends the process.

    Args:
        kind: ``dbpkit``, ``pytest`` or ``python``.
        arguments: those of the command, or the script.
        where: the working folder.
        path: folders to import from, before the others.
        env: all environment variables.
        said: where the two streams are written, with ``.out`` and ``.err`` behind it.
    """
    os.environ.clear()
    os.environ.update(env)
    os.chdir(where)
    sys.path[:0] = path
    for stream, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{ending}", os.O_WRONLY | os.O_CREAT), stream)
    code = 1
    try:
        code = _ran(kind, arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ran(kind: str, arguments: list[str]) -> int:
    if kind == "dbpkit":
        from dbpkit.cli import main

        sys.argv = ["dbpkit", *arguments]
        main()
        return 0
    if kind == "pytest":
        import pytest

        for name in [m for m in sys.modules if m.split(".")[0] in ("tests", "conftest")]:
            del sys.modules[name]  # the tests over the registries have to see the recipe's part
        return int(pytest.main(arguments))
    (script,) = arguments
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
    return 0
