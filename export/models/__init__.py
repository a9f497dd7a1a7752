"""The models that come with CoDA, and how a user's own is found.

A model of one's own is a subclass of `base.Recommender` in any importable module, named as `package.module:Class`;
its constructor takes a `Catalogue` and `history`, the bound of its history.
"""

from __future__ import annotations

import importlib

from device_runtime.errors import InputError
from export.models.base import Catalogue, Recommender
from export.models.checks import check_recommender
from export.models.deepfm import DeepFM
from export.models.din import DIN
from export.models.gru import GRU
from export.models.lr import LR
from export.models.pnn import PNN
from export.models.sasrec import SASRec
from export.models.wide_deep import WideDeep

__all__ = ["ALIASES", "MODELS", "Catalogue", "Recommender", "create"]

MODELS: dict[str, type[Recommender]] = {
    "LR": LR,
    "WideDeep": WideDeep,
    "DeepFM": DeepFM,
    "PNN": PNN,
    "DIN": DIN,
    "SASRec": SASRec,
    "GRU": GRU,
}
ALIASES = {"Wide&Deep": "WideDeep"}


def create(name: str, catalogue: Catalogue, history: int) -> Recommender:
    """A new model by name, with random weights.

    Raises:
        InputError: there is no such model, it is not a `Recommender`, or its declarations do not hold.
    """
    kind: object = MODELS.get(ALIASES.get(name, name))
    if kind is None:
        module, _, attribute = name.partition(":")
        if not attribute:
            raise InputError(
                f"no model is called {name!r}; there are {', '.join(MODELS)}, or give package.module:Class"
            )
        try:
            kind = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"the model {name!r} cannot be imported: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, Recommender)):
        raise InputError(f"{name!r} is not a subclass of export.models.base.Recommender")
    try:
        model = kind(catalogue, history=history)
    except TypeError as error:  # of its arguments, or of a method that it lacks
        raise InputError(
            f"{name!r} cannot be made by {kind.__name__}(catalogue, history={history}): {error}"
        ) from error
    check_recommender(model, catalogue, history)
    return model
