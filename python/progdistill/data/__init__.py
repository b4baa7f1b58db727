"""The data room: images from any source as uint8 tensors, their order, and the way to and from [-1, 1]."""

from progdistill.data.device_images import DeviceImages
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.open_dataset import open_dataset
from progdistill.data.order import epoch_order, sample_indices
from progdistill.data.pixels import to_float, to_uint8

__all__ = ["DeviceImages", "ImageDataset", "epoch_order", "open_dataset", "sample_indices", "to_float", "to_uint8"]
