"""Options from a dataclass, with a YAML file as defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

Config = TypeVar("Config")


def parse(cls: type[Config], arguments: list[str], command: str) -> Config:
    """A `cls` from command-line arguments; `--config FILE` gives defaults that the other flags override.

    Raises:
        ValueError: the file is not a mapping, or has keys that the command does not know (they are listed).
        OSError: the file cannot be read.
        SystemExit: --help, or flags that do not parse (tyro prints why).
    """
    path, rest = _split_config(arguments)
    required = [f.name for f in dataclasses.fields(cls) if _is_required(f)]
    defaults: dict[str, Any] = dict.fromkeys(required, tyro.MISSING)
    if path is not None:
        defaults.update(_read(path, cls))
    description = f"{cls.__doc__}\n\n--config FILE takes defaults from a YAML file (recipes/*.yaml); flags override it."
    return tyro.cli(
        cls,
        args=rest,
        default=cls(**defaults),
        prog=f"progdistill {command}",
        description=description,
    )


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _split_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    path, rest, pending = None, [], iter(arguments)
    for argument in pending:
        if argument == "--config":
            path = next(pending, None)
            if path is None:
                raise ValueError("--config needs a file")
        elif argument.startswith("--config="):
            path = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return path, rest


def _read(path: str, cls: type) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected options as `name: value` lines")
    content = {str(key).replace("-", "_"): value for key, value in content.items()}
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ValueError(f"{path} has unknown options {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return content
