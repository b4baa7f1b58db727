"""scikit-learn's handwritten digits: a real data set that needs no download."""

from __future__ import annotations

import numpy as np

from progdistill.data.arrays import array_dataset
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.resize import Resize


def open_digits(resize: Resize | None) -> ImageDataset:
    """1797 grey 8x8 images of the digits 0..9, labelled; their 17 grey levels are spread over 0..255.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'the "digits" data set comes with scikit-learn: pip install "progdistill[quickstart]"'
        ) from error
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return array_dataset(pixels, "digits of scikit-learn", digits.target, "digits of scikit-learn", resize)
