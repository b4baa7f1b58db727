"""benchmarks/kernel_classes.py: names as profilers print them, and those of progdistill's own kernels."""

import re
from pathlib import Path

import pytest
import torch

import kernel_classes
from kernel_classes import CLASSES, OTHER, conversion_share, kernel_class, profiled, summed

ROOT = Path(__file__).parents[2]
LAMBDA = "at::native::(anonymous namespace)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_warpgroup", "arithmetic"),
        (
            "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816wgrad_optimized_bf16_256x64>(Params)",
            "arithmetic",
        ),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "arithmetic"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(...)", "arithmetic"),
        (
            "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<256>>",
            "arithmetic",
        ),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x128x128", "arithmetic"),
        ("triton_tem_fused_addmm_12", "arithmetic"),
        (f"void at::native::{LAMBDA}::RowwiseMomentsCUDAKernel<c10::BFloat16>(long, float, ...)", "normalisation"),
        (f"void at::native::elementwise_kernel<128, 2, {LAMBDA}::GroupNormKernelImplInternal<float>>", "normalisation"),
        (f"void at::native::{LAMBDA}::ComputeInternalGradientsCUDAKernel<float>(long, ...)", "normalisation"),
        ("triton_red_fused__to_copy_native_group_norm_silu_4", "normalisation"),
        ("triton_poi_fused_native_group_norm_native_group_norm_backward_silu_17", "normalisation"),
        ("void progdistill::cuda::(anonymous namespace)::group_moments_kernel<__nv_bfloat16>(...)", "normalisation"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>(...)", "layout copies"),
        ("void cudnn::engines_precompiled::nhwcToNchwKernel<__half, float>(...)", "layout copies"),
        (
            "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<"
            "at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}>>",
            "layout copies",
        ),
        ("triton_poi_fused_clone_3", "layout copies"),
        ("aten::copy_", "layout copies"),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)"
            "::{lambda()#3}, std::array<char*, 2ul>, 4, at::native::memory::LoadWithCast<1>>",
            "casts",
        ),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda"
            "(at::TensorIteratorBase&)::{lambda(float)#1}>",
            "casts",
        ),
        ("triton_poi_fused__to_copy_0", "casts"),
        ("triton_poi_fused__to_copy_convolution_1", "casts"),
        ("triton_poi_fused_add_convolution_div_8", "element-wise"),
        ("triton_poi_fused__to_copy_add_convolution_9", "element-wise"),
        (f"void at::native::vectorized_elementwise_kernel<4, {LAMBDA}::silu_kernel(...)>", "element-wise"),
        (
            "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>>",
            "element-wise",
        ),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, sum_functor<float>>>", "reductions"),
        ("triton_red_fused_convolution_backward_3", "reductions"),
        (f"void at::native::{LAMBDA}::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer"),
        ("void progdistill::cuda::(anonymous namespace)::adamw_ema_kernel<float>(Table, AdamW)", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("Memset (Device)", "copies"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<c10::BFloat16, unsigned int, 4>", "copies"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::direct_copy_kernel_cuda(...)::{lambda()#3}>",
            "copies",
        ),
        ("something_else_entirely", "other"),
    ],
)
def test_names_of_a_profile(name, expected):
    assert kernel_class(name) == expected


def test_every_kernel_of_progdistill_has_a_class():
    found = 0
    for path in (ROOT / "kernels" / "cuda").glob("*.cu*"):
        for name in re.findall(r"__global__[^;{]*?\b(\w+_kernel)\(", path.read_text()):
            found += 1
            assert kernel_class(f"void progdistill::cuda::(anonymous namespace)::{name}<float>(float*)") != OTHER, name
    assert found > 8
    assert kernel_class("_distillation_loss") == kernel_class("_coefficients") == "element-wise"


def test_triton_kernels_are_known_by_their_files(tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / "triton"
    folder.mkdir(parents=True)
    (folder / "group_norm_silu.py").write_text("@triton.jit\ndef _merge(a):\n    pass\n")
    (folder / "adamw_ema.py").write_text("@triton.jit(noinline=True)\ndef _update(a):\n    pass\n\ndef host(a): pass\n")
    monkeypatch.setattr(kernel_classes, "ROOT", tmp_path)
    kernel_classes._own_triton_kernels.cache_clear()
    try:
        assert [kernel_class(name) for name in ("_merge", "_update", "host")] == ["normalisation", "optimizer", "other"]
    finally:
        kernel_classes._own_triton_kernels.cache_clear()


def test_times_of_one_class_are_summed():
    by_class = summed([("nvjet_a", 3.0), ("aten::copy_", 1.0), ("nvjet_b", 2.0), ("triton_poi_fused__to_copy_0", 2.0)])
    assert by_class["seconds"] == dict.fromkeys(CLASSES, 0.0) | {"arithmetic": 5.0, "layout copies": 1.0, "casts": 2.0}
    assert by_class["names"][0] == ["nvjet_a", "arithmetic", 3.0]
    assert conversion_share(by_class) == pytest.approx(3 / 8)


def test_a_profile_of_the_cpu():
    a = torch.randn(300, 300)
    found = profiled(lambda: torch.mm(a, a).copy_(a.t()), "cpu")
    assert found["launches"] is None
    names = {name: kind for name, kind, _ in found["by_class"]["names"]}
    assert names["aten::mm"] == "arithmetic" and names["aten::copy_"] == "layout copies"
    assert found["by_class"]["seconds"]["arithmetic"] > 0
