"""Who may know whom: a module imports only rooms that stand before its own."""

import ast
from pathlib import Path

import progdistill

ORDER = [
    {"ops"},
    {"core"},
    {"nets"},
    {"data", "metrics", "sampling", "interop", "report"},
    {"evaluation"},
    {"training"},
    {"quickstart", "comparison"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
PACKAGE = Path(progdistill.__file__).parent


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "progdistill" else [f"progdistill.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "progdistill" and len(parts) > 1 and parts[1] in RANK:
                yield parts[1]


def test_every_folder_has_a_rank():
    assert {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()} == set(RANK)


def test_modules_import_only_what_stands_before_them():
    wrong = []
    for room in RANK:
        for path in (PACKAGE / room).rglob("*.py"):
            for other in imported_rooms(path):
                if other != room and RANK[other] >= RANK[room]:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not wrong, wrong


def test_forbidden_dependencies():
    """Never torchvision, never pickles, and the optional packages only inside functions."""
    optional = {"diffusers", "torchmetrics", "sklearn", "pyarrow", "datasets", "webdataset", "wandb", "tensorboard"}
    optional |= {"huggingface_hub"}
    optional |= {"onnx", "onnx_ir", "onnxscript", "onnxruntime"}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                roots = {name.split(".")[0] for name in names}
                assert not roots & {"torchvision", "pickle"}, path
                assert node not in tree.body or not roots & optional, path
