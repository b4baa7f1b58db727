"""`progdistill bench`."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import progdistill


def run(arguments: list[str]) -> None:
    """Lists the benchmarks, or runs one with the rest of the arguments; its exit status is the command's.

    Raises:
        FileNotFoundError: there is no source checkout.
        ValueError: no benchmark has that name.
    """
    folder = benchmarks_folder()
    known = benchmarks(folder)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: progdistill bench NAME [--help] [--options of the benchmark]\n")
        width = max(map(len, known))
        print("\n".join(f"  {name:<{width}}  {_purpose(path)}" for name, path in known.items()))
        print(f"\nThey are in {folder}.")
        return
    name, *rest = arguments
    name = _whole_name(name, known)
    if name not in known:
        raise ValueError(f"no benchmark is named {name!r}; use one of {', '.join(known)}")
    # The benchmark measures the progdistill that runs this command, from wherever it is run.
    package = str(Path(progdistill.__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, str(known[name]), *rest], env=environment)
    if done.returncode:
        raise SystemExit(done.returncode)


def _whole_name(given: str, known: Iterable[str]) -> str:
    """The name that ends with these words, if only one does: "step" is train_step."""
    name = given.replace("-", "_")
    ends = [one for one in known if one.endswith(f"_{name}")]
    return ends[0] if len(ends) == 1 and name not in known else name


def benchmarks_folder() -> Path:
    """benchmarks/ of the checkout that progdistill was installed from, or of the current directory."""
    roots = [Path(progdistill.__file__).resolve().parents[2], _installed_from(), Path.cwd()]
    for root in filter(None, roots):
        if (root / "benchmarks" / "kernels.py").is_file() and (root / "python" / "progdistill").is_dir():
            return root / "benchmarks"
    looked = ", ".join(str(root) for root in filter(None, roots))
    raise FileNotFoundError(
        f"no source checkout of progdistill in {looked}; the benchmarks are in its folder benchmarks: clone the "
        "repository and run this command in the clone"
    )


def _installed_from() -> Path | None:
    # pip notes the folder of `pip install .`, editable or not.
    try:
        note = importlib.metadata.distribution("progdistill").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    url = urlparse(json.loads(note)["url"]) if note else None
    return Path(url2pathname(url.path)) if url is not None and url.scheme == "file" else None


def benchmarks(folder: Path) -> dict[str, Path]:
    """Name -> file, of those that are programs: measurements of speed, then those of quality."""
    files = [*sorted(folder.glob("*.py")), *sorted(folder.glob("ablations/*.py"))]
    return {path.stem: path for path in files if _is_program(path)}


def _is_program(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body)


def _purpose(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n", 1)[0]
