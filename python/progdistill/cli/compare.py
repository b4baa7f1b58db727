"""`progdistill compare`."""

from __future__ import annotations

from progdistill.cli.arguments import parse
from progdistill.comparison import CompareConfig, compare, table_lines
from progdistill.core.processes import is_main_process

_LISTS = ("--methods", "--steps", "--metrics")


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(CompareConfig, with_flags(arguments), "compare")
    result = compare(config=config)
    if not is_main_process():
        return
    print("\n".join(table_lines(result)))
    print(f"look at {config.output_dir}/report.html; the figures are in {config.output_dir}/metrics.json")


def with_flags(arguments: list[str]) -> list[str]:
    """The arguments as the parser takes them: the teacher with its flag, lists with spaces in place of commas."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--teacher", *arguments]
    separate, flag = [], ""
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            if flag not in _LISTS or not equals:
                separate.append(argument)
                continue
            separate.append(flag)
            argument = value
        separate += [part for part in argument.split(",") if part] if flag in _LISTS else [argument]
    return separate
