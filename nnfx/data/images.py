"""Images with labels: scikit-learn's digits, and MNIST, Fashion-MNIST, EMNIST and CIFAR, downloaded from the web."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.data.download import File, fetch
from nnfx.data.emnist import CLASSES, read_emnist
from nnfx.data.formats import Examples, read_cifar10, read_cifar100, read_idx_examples
from nnfx.data.prepare import Data, Preprocess, Report
from nnfx.data.splits import at_random
from nnfx.types import Array, Batch


class Images(NamedTuple):
    """Raw images with labels, on the host; their `prepare` method makes them ready for training.

    Attributes:
        train: the training images.
        test: the official test set, or None if there is none.
        classes: the names of the classes, by label.
        brightest: the value of the brightest possible pixel.
    """

    train: Examples
    test: Examples | None
    classes: tuple[str, ...]
    brightest: int

    def prepare(
        self,
        *,
        key: Array | None = None,
        valid_fraction: float = 0.0,
        hold_out_test: bool = False,
        standardize: bool = False,
    ) -> Data:
        """Prepare the images for training: split, scale to [0, 1] or standardise, and move to the device.

        Args:
            key: a typed key that determines which training images are held out.
            valid_fraction: the fraction of the training images to hold out, at least 0 and below 1.
            hold_out_test: whether to hold out the official test set instead.
            standardize: whether to standardise each channel to mean 0 and standard deviation 1, as measured over all
                pixels of the training split, instead of dividing by `brightest`.

        Returns:
            Inputs `(rows, height, width, channels)` in the default float, and int32 targets `(rows,)`. The
            preprocessing takes raw images, so `run.predict(images.test.inputs)` works directly.

        Raises:
            TypeError: for a key that is not typed.
            ValueError: for a fraction that leaves either split empty or is given together with `hold_out_test`, and
                for images without a test set to hold out.

        Example:
            >>> data = images("digits").prepare(key=jax.random.key(0), valid_fraction=0.2, standardize=True)
            >>> data.train.inputs.shape, data.valid.inputs.shape
            ((1438, 8, 8, 1), (359, 8, 8, 1))
        """
        train, valid = self._parts(key, valid_fraction, hold_out_test)
        mean, scale = _channel_moments(train.inputs) if standardize else (np.zeros(()), np.array(self.brightest))
        preprocess = Preprocess(
            median=None,
            mean=jnp.asarray(mean, float),
            scale=jnp.asarray(scale, float),
            indicators=(),
            shape=train.inputs.shape[1:],
            classes=self.classes,
        )

        def batch(examples: Examples) -> Batch:
            rows = len(examples.targets)
            return Batch(_preprocessed(preprocess, examples.inputs), jnp.asarray(examples.targets), jnp.ones(rows))

        held_out = len(valid.targets)
        return Data(
            train=batch(train),
            valid=batch(valid) if held_out else None,
            preprocess=preprocess,
            report=Report(len(train.targets) + held_out, 0, {}, len(train.targets), held_out),
        )

    def _parts(self, key: Array | None, valid_fraction: float, hold_out_test: bool) -> tuple[Examples, Examples]:
        """Return the training split and the held-out split, which may be empty."""
        if hold_out_test:
            if self.test is None:
                raise ValueError("hold_out_test: expected images with an official test set, got images without one")
            if valid_fraction != 0:
                raise ValueError(f"valid_fraction: expected 0 if the test set is held out, got {valid_fraction:g}")
            return self.train, self.test
        train, valid = at_random(key, np.arange(len(self.train.targets)), valid_fraction)
        inputs, targets = self.train
        return Examples(inputs[train], targets[train]), Examples(inputs[valid], targets[valid])


# a single program from bytes to floats, so that nothing larger than the result is kept in memory
_preprocessed = jax.jit(Preprocess.__call__)


def _channel_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each channel's mean and standard deviation (1 if it is constant), `(1, 1, 1, channels)` each."""
    pixels = images[..., 0].size
    mean = images.sum((0, 1, 2), keepdims=True, dtype=np.int64) / pixels
    square = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64) / pixels  # exact, and without a float copy
    scale = np.sqrt(square - mean**2)
    scale[scale == 0] = 1
    return mean, scale


class _Source(NamedTuple):
    """A source of images on the web: its files, and the names of the classes."""

    files: tuple[File, ...]
    classes: tuple[str, ...]


def _idx_files(folder: str, url: str, *checksums: str) -> tuple[File, ...]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    names = [f"{part}-ubyte.gz" for part in parts]
    return tuple(
        File(f"{folder}/{name}", f"{url}/{name}", sha256) for name, sha256 in zip(names, checksums, strict=True)
    )


_FASHION_CLASSES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
_EMNIST = File(
    "emnist/gzip.zip",
    "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
    "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
)
_CIFAR100 = File(
    "cifar-100/cifar-100-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
_CIFAR100_GROUPS = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""

_SOURCES = {
    "mnist": _Source(
        _idx_files(
            "mnist",
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        classes=tuple("0123456789"),
    ),
    "fashion_mnist": _Source(
        _idx_files(
            "fashion-mnist",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        classes=tuple(_FASHION_CLASSES.split(", ")),
    ),
    "cifar10": _Source(
        (
            File(
                "cifar-10/cifar-10-binary.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": _Source((_CIFAR100,), classes=tuple(_CIFAR100_CLASSES.split())),
    "cifar100_coarse": _Source((_CIFAR100,), classes=tuple(_CIFAR100_GROUPS.split())),
    **{f"emnist_{name}": _Source((_EMNIST,), classes) for name, classes in CLASSES.items()},
}


def images(name: str) -> Images:
    """Return raw images with their labels and class names, with the official test set kept separate.

    All but `"digits"`, which works offline, are downloaded once into the folder that the environment variable
    `NNFX_DATA` names, or else the platform's cache, and verified by their checksums.

    Args:
        name: `"digits"`, `"mnist"`, `"fashion_mnist"`, `"cifar10"` or `"cifar100"`, as the functions of those names;
            or `"cifar100_coarse"`, whose labels are groups of classes; or an EMNIST data set, with upright images:
            `"emnist_balanced"`, `"emnist_byclass"`, `"emnist_bymerge"`, `"emnist_digits"`, `"emnist_letters"` or
            `"emnist_mnist"`, see `read_emnist`.

    Returns:
        The images; their `prepare` method returns data for training.

    Raises:
        ValueError: for an unknown name, or a file with the wrong checksum.
        OSError: for a file that is missing and cannot be downloaded.

    Example:
        >>> digits = images("digits")
        >>> digits.train.inputs.dtype, digits.train.inputs.shape, digits.classes[0]
        (dtype('uint8'), (1797, 8, 8, 1), '0')
    """
    checks.choice("name", name, ("digits", *_SOURCES))
    if name == "digits":
        return _digits()
    files, classes = _SOURCES[name]
    paths = [fetch(file) for file in files]
    if name == "cifar10":
        train, test = read_cifar10(paths[0])
    elif name.startswith("emnist_"):
        train, test = read_emnist(paths[0], name.removeprefix("emnist_"))
    elif files == (_CIFAR100,):
        train, test = read_cifar100(paths[0], coarse=name == "cifar100_coarse")
    else:
        train, test = read_idx_examples(*paths[:2]), read_idx_examples(*paths[2:])
    return Images(train, test, classes, brightest=255)


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "scikit-learn: required for its digits, but not installed: pip install 'nnfx[datasets]'"
        ) from error
    loaded = load_digits()
    train = Examples(loaded.images[..., None].astype(np.uint8), loaded.target.astype(np.int32))
    return Images(train, None, tuple("0123456789"), brightest=16)


def digits(*, key: Array | None = None, valid_fraction: float = 0.0, standardize: bool = False) -> Data:
    """The 1,797 handwritten digits that come with scikit-learn, 8 × 8 greyscale pixels, available offline.

    Args:
        key: a typed key that determines which images are held out; see `Images.prepare` for all arguments.
        valid_fraction: the fraction of the images to hold out.
        standardize: whether to standardise the pixels instead of dividing them by 16.

    Returns:
        Inputs `(rows, 8, 8, 1)` and int32 targets `(rows,)`, the digits.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
        TypeError, ValueError: as for `Images.prepare`.

    Example:
        >>> data = digits(key=jax.random.key(0), valid_fraction=0.2)
        >>> data.train.inputs.shape, float(data.train.inputs.max())
        ((1438, 8, 8, 1), 1.0)
        >>> print(data.report)
        1797 rows: 1438 to train on, 359 held out, 0 dropped for missing values; values filled: none

    References:
        Alpaydin and Kaynak, *Optical recognition of handwritten digits*, UCI Machine Learning Repository 1998.
    """
    return images("digits").prepare(key=key, valid_fraction=valid_fraction, standardize=standardize)


def mnist(
    *,
    key: Array | None = None,
    valid_fraction: float = 0.0,
    hold_out_test: bool = False,
    standardize: bool = False,
) -> Data:
    """MNIST: handwritten digits, 28 × 28 greyscale pixels, with 60,000 training images and a test set of 10,000.

    Args:
        key: a typed key that determines which of the 60,000 images are held out; see `Images.prepare`.
        valid_fraction: the fraction of these images to hold out.
        hold_out_test: whether to hold out the test set instead.
        standardize: whether to standardise the pixels instead of dividing them by 255.

    Returns:
        Inputs `(rows, 28, 28, 1)` and int32 targets `(rows,)`, the digits.

    Raises:
        OSError, TypeError, ValueError: as for `images` and `Images.prepare`.

    References:
        LeCun, Bottou, Bengio and Haffner, *Gradient-based learning applied to document recognition*,
        Proceedings of the IEEE 1998.
    """
    return images("mnist").prepare(
        key=key, valid_fraction=valid_fraction, hold_out_test=hold_out_test, standardize=standardize
    )


def fashion_mnist(
    *,
    key: Array | None = None,
    valid_fraction: float = 0.0,
    hold_out_test: bool = False,
    standardize: bool = False,
) -> Data:
    """Fashion-MNIST: images of clothing, with the same sizes and splits as MNIST, but harder to classify.

    Args:
        key: a typed key that determines which of the 60,000 images are held out; see `Images.prepare`.
        valid_fraction: the fraction of these images to hold out.
        hold_out_test: whether to hold out the test set instead.
        standardize: whether to standardise the pixels instead of dividing them by 255.

    Returns:
        Inputs `(rows, 28, 28, 1)` and int32 targets `(rows,)`, named by `images("fashion_mnist").classes`.

    Raises:
        OSError, TypeError, ValueError: as for `images` and `Images.prepare`.

    References:
        Xiao, Rasul and Vollgraf, *Fashion-MNIST: a novel image dataset for benchmarking machine learning
        algorithms*, arXiv:1708.07747, 2017.
    """
    return images("fashion_mnist").prepare(
        key=key, valid_fraction=valid_fraction, hold_out_test=hold_out_test, standardize=standardize
    )


def cifar10(
    *,
    key: Array | None = None,
    valid_fraction: float = 0.0,
    hold_out_test: bool = False,
    standardize: bool = False,
) -> Data:
    """CIFAR-10: animals and vehicles, 32 × 32 colour pixels, with 50,000 training images and a test set of 10,000.

    Args:
        key: a typed key that determines which of the 50,000 images are held out; see `Images.prepare`.
        valid_fraction: the fraction of these images to hold out.
        hold_out_test: whether to hold out the test set instead.
        standardize: whether to standardise each channel instead of dividing by 255.

    Returns:
        Inputs `(rows, 32, 32, 3)` and int32 targets `(rows,)`, named by `images("cifar10").classes`.

    Raises:
        OSError, TypeError, ValueError: as for `images` and `Images.prepare`.

    References:
        Krizhevsky, *Learning multiple layers of features from tiny images*, technical report, Toronto 2009.
    """
    return images("cifar10").prepare(
        key=key, valid_fraction=valid_fraction, hold_out_test=hold_out_test, standardize=standardize
    )


def cifar100(
    *,
    key: Array | None = None,
    valid_fraction: float = 0.0,
    hold_out_test: bool = False,
    standardize: bool = False,
    coarse: bool = False,
) -> Data:
    """CIFAR-100: images like those of CIFAR-10, in 100 classes that form 20 groups, with 500 training images per class.

    Args:
        key: a typed key that determines which of the 50,000 images are held out; see `Images.prepare`.
        valid_fraction: the fraction of these images to hold out.
        hold_out_test: whether to hold out the test set of 10,000 instead.
        standardize: whether to standardise each channel instead of dividing by 255.
        coarse: whether the targets are the groups instead of the classes.

    Returns:
        Inputs `(rows, 32, 32, 3)` and int32 targets `(rows,)`, named by `images("cifar100").classes`, or, if coarse,
        by `images("cifar100_coarse").classes`.

    Raises:
        OSError, TypeError, ValueError: as for `images` and `Images.prepare`.

    References:
        Krizhevsky, *Learning multiple layers of features from tiny images*, technical report, Toronto 2009.
    """
    return images("cifar100_coarse" if coarse else "cifar100").prepare(
        key=key, valid_fraction=valid_fraction, hold_out_test=hold_out_test, standardize=standardize
    )
