"""The operations as Triton kernels, for GPUs of machines without nvcc: one file an operation, kernel and launch.

Launches run on the tensors' device and its current stream, wait for nothing and allocate only through PyTorch, so
they can be captured in CUDA graphs. Outputs are the caller's. Tensors of images are dense in one order, contiguous or
channels_last; `channels` tells how an output of two heads lies (see `elements`).
"""
