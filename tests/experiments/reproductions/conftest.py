import numpy as np
import pytest

import nnfx
from nnfx.data.formats import Examples


@pytest.fixture
def small_images(monkeypatch):
    """Replace Fashion-MNIST by a hundred images in which a bright row shows the label."""
    rng = np.random.default_rng(0)

    def examples(rows):
        labels = rng.integers(0, 10, rows).astype(np.int32)
        images = rng.integers(0, 30, (rows, 28, 28, 1)).astype(np.uint8)
        images[np.arange(rows), 2 * labels] = 255
        return Examples(images, labels)

    images = nnfx.data.Images(examples(70), examples(30), tuple("0123456789"), 255)
    data = images.prepare(hold_out_test=True)
    monkeypatch.setattr(nnfx.data, "fashion_mnist", lambda hold_out_test: data)
    return data
