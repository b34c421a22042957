"""Whether the full model and the labels are about the same thing, before anything is certified by them.

A certificate bounds what the edge adds to the full model's mistakes. Where both are wrong together, because
the outputs are named in another order or images are made into something else than the model was trained on,
it would hold and be worth nothing.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from inference_core.errors import InvalidInput
from toolchain.runs import Classes, Logits, accuracy

_BETTER = 0.25  # of the samples, that another order of the outputs has to get right more


def check_plausible(full: Logits, classes: Classes) -> None:
    """Raise `InvalidInput` when the full model's logits `[n, k]` hardly name `classes` `[n]`.

    That is when another order of the outputs would be right far more often, or when always naming the
    most frequent class would be right as often.
    """
    right = accuracy(full, classes)
    outputs = full.shape[1]
    together = np.zeros((outputs, outputs), np.int64)
    np.add.at(together, (full.argmax(axis=1), classes), 1)
    reordered = float(together[linear_sum_assignment(-together)].sum()) / len(classes)
    if reordered >= right + _BETTER:
        raise InvalidInput(
            f"the full model is right on {right:.1%} of the samples; with its outputs in another order it "
            f"would be right on {reordered:.1%}: name them in the model's order with --labels"
        )
    frequent = float(np.bincount(classes).max()) / len(classes)
    if right <= frequent and right < 1:
        raise InvalidInput(
            f"the full model is right on {right:.1%} of the samples, no more than always naming the most "
            f"frequent class, {frequent:.1%}: do the labels and the preprocessing fit the model?"
        )
