"""benchmarks/launches.py: counts from the events of a trace."""

import pytest
import torch

from launches import counted, counted_elsewhere, enter, launches


def event(category, correlation):
    return {"cat": category, "name": "something", "args": {"correlation": correlation}}


def test_what_a_graph_runs_is_one_launch():
    events = [event("cuda_runtime", 7), event("kernel", 7), event("kernel", 7), event("gpu_memset", 7)]  # a graph
    events += [event("cuda_runtime", 8), event("gpu_memcpy", 8), event("kernel", 9), {"cat": "cpu_op", "name": "add"}]
    events += [{"name": "process_name", "ph": "M"}, event("gpu_user_annotation", 10), event("cuda_runtime", 11)]
    assert counted(events) == {"launches": 3, "kernels": 5}


def test_counts_go_where_they_belong():
    def cell(batch_size, steps, **records):
        return {
            "batch_size": batch_size,
            "steps": steps,
            "records": [{"contender": k, **v} for k, v in records.items()],
        }

    cells = [cell(1, 2, a={}, b={}), cell(2, 2, a={})]
    enter([cell(2, 2, a={"launches": 5, "kernels": 6}), cell(1, 2, b={"launches": 7, "kernels": 8})], cells)
    found = [[(r["contender"], r["launches"], r["kernels"]) for r in cell["records"]] for cell in cells]
    assert found == [[("a", None, None), ("b", 7, 8)], [("a", 5, 6)]]


def test_a_process_that_dies_leaves_what_it_counted_and_its_last_words(tmp_path):
    program = tmp_path / "counts.py"
    program.write_text(
        "import pathlib, sys\n"
        "pathlib.Path(sys.argv[-1]).write_text('{\"cells\": [1]}')\n"
        "raise SystemExit(sys.argv[1])\n"
    )
    assert counted_elsewhere(program, ["no kernel image"]) == ([1], "no kernel image\n")
    program.write_text("")
    assert counted_elsewhere(program, []) == ([], None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_launches_of_a_graph_and_of_its_calls():
    x = torch.randn(100, device="cuda")

    def three():
        x.add_(1).mul_(2).sub_(3)

    three()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        three()
    assert launches(three) == {"launches": 3, "kernels": 3}
    assert launches(graph.replay) == {"launches": 1, "kernels": 3}
