"""The numbers of a run, as they have always been: a run that is resumed must go on with them."""

import torch

from progdistill.core.random import Stream, integers, sample_seeds, uniform

SEEDS = [-1549984977205064582, 3025841924959248126, -2940012898343211762, 8219722282227745668]
NEGATIVE = [-7876765584789298702]
TIMES = [0.972491053686584, 0.30475598518694735, 0.9324720140395212, 0.710562860977346]
NUMBERS = [959, 939, 83, 528]


def test_numbers_of_a_run_stay_what_they_are():
    seeds = sample_seeds(42, 1, torch.tensor([-1, 0, 1, 2**33 + 5]))
    assert seeds.tolist() == SEEDS
    assert sample_seeds(-(2**63), 0, torch.tensor([7])).tolist() == NEGATIVE
    assert sample_seeds(2**63, 0, torch.tensor([7])).tolist() == NEGATIVE  # the same 64 bits
    assert uniform(seeds, 2**32 + 9, Stream.TIME).tolist() == TIMES
    assert integers(seeds, 9, Stream.FLIP, 1000).tolist() == NUMBERS
