"""Runs scripts in forks of a process that has imported what they import: torch and transformers take seconds to import.

Reads requests from stdin, one JSON object a line: {"script": path, "arguments": [...]}. Answers each with one line:
{"status": exit status, "stdout": text, "stderr": text}. Ends when stdin does.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"


def import_like(script: Path) -> None:
    """Imports what a script imports at its top, but for what lies beside it. A class that is imported loads its module too."""
    for node in ast.parse(script.read_text()).body:
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            if importlib.util.find_spec(module.split(".")[0]) is not None:
                getattr(importlib.import_module(module), name or "__name__", None)


def run(script: Path, arguments: list[str]) -> int:
    """Runs a script as the interpreter would, and returns its exit status."""
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.parent)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def answer(request: dict[str, Any]) -> dict[str, Any]:
    script = Path(request["script"])
    import_like(script)
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            status = run(script, request["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return {"status": status, "stdout": texts[0], "stderr": texts[1]}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
