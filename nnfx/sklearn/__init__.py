"""Estimators and a hyper-parameter search that follow the conventions of scikit-learn.

Use them like scikit-learn's own: in pipelines, in searches, and with splitters and scorers. They require the extra
`sklearn`; `import nnfx` alone does not import scikit-learn. There is no forecaster here: scikit-learn predicts a target
for each row, in any order, whereas a forecast continues an ordered series past its end; see `nnfx.forecasting`.
"""

try:
    import sklearn
except ImportError as error:
    raise ImportError(
        "scikit-learn: required by nnfx.sklearn, but not installed: pip install 'nnfx[sklearn]'"
    ) from error

from nnfx.sklearn.classifier import Classifier
from nnfx.sklearn.regressor import Regressor
from nnfx.sklearn.search import SweepSearchCV

del sklearn

__all__ = ["Classifier", "Regressor", "SweepSearchCV"]
