"""A warning about releases of jaxlib that return wrong numbers on the CPU.

jaxlib 0.10.2 and 0.11.x silently miscompile some fusions there (jax issues 39103 and 39257). The package's
requirements exclude them; this module warns if one is installed anyway.
"""

import os
import re
import warnings

CURE = "--xla_cpu_experimental_ynn_fusion_type="


def is_affected(version: str) -> bool:
    """Return whether a release of jaxlib is known to miscompile on the CPU.

    >>> [is_affected(version) for version in ("0.10.1", "0.10.2", "0.11.0", "0.12.0")]
    [False, True, True, False]
    """
    return re.match(r"0\.(10\.2|11\.\d+)(?!\d)", version) is not None


def warn_if_affected(version: str) -> None:
    """Warn, in one line, about an affected release, unless the flag that avoids the bug is set."""
    if is_affected(version) and CURE not in os.environ.get("XLA_FLAGS", "").split():
        warnings.warn(
            f"jaxlib {version} returns wrong numbers on the CPU (jax issue 39103): install another release,"
            f' or set XLA_FLAGS="{CURE}" before Python starts',
            RuntimeWarning,
            stacklevel=3,
        )
