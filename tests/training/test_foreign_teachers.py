"""Teachers that are not networks of ours: distilled as they are, or refused."""

import pytest
import torch

import tiny
from progdistill import Denoiser, distill, from_edm, from_flow_matching, sample
from progdistill.nets.unet import UNet

SMALL = {"rounds": 2, "updates_per_round": 2, "train_batch_size": 4, "validation_images": 2, "progress": False}


class Theirs(torch.nn.Module):
    """A network in another family's terms, whose output is not zero."""

    def __init__(self):
        super().__init__()
        self.unet = UNet(tiny.NETWORK)
        torch.nn.init.normal_(self.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))

    def forward(self, state, time):
        return self.unet(state, 100 * time)


@pytest.mark.parametrize("make", [from_edm, from_flow_matching])
def test_a_teacher_in_other_terms_is_distilled(make, tmp_path):
    teacher = make(Theirs(), sample_shape=(1, 8, 8))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = distill(teacher, data=tiny.IMAGES, output_dir=str(tmp_path / "run"), **SMALL)
    assert type(student.network) is type(teacher.network) and student.valid_steps == (1,)
    assert sorted(student.students) == [2]
    assert sample(student, steps=2, batch_size=2, output_type="pt").isfinite().all()
    changed = [name for name, value in student.state_dict().items() if not torch.equal(value, before[name])]
    assert changed and all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    again = distill(teacher, data=tiny.IMAGES, output_dir=str(tmp_path / "run"), **SMALL)
    for name, value in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_function_is_sampled_but_not_distilled(tmp_path):
    teacher = Denoiser(lambda z, time: 0.1 * z, sample_shape=(1, 8, 8))
    assert sample(teacher, steps=4, batch_size=2, output_type="pt").shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"no parameters.*nn\.Module"):
        distill(teacher, data=tiny.IMAGES, output_dir=str(tmp_path / "run"), **SMALL)
