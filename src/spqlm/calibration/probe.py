"""A first look at a model on text, before any work is put into it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from spqlm.calibration.needs import Needs
from spqlm.calibration.sensitivity import collect_sensitivities
from spqlm.calibration.statistics import Observation, collect
from spqlm.model.experts import is_expert
from spqlm.model.limits import check_vocabulary, room
from spqlm.model.mapped import is_bounded
from spqlm.model.soundness import check_runs
from spqlm.model.view import ModelView
from spqlm.progress import track

TOKENS = 128


def probe(
    view: ModelView, needs: Iterable[Needs], text: Tensor, windows: Tensor | None = None
) -> None:
    """Refuse a model on which what stages ask of the text cannot be measured.

    It reads the beginning of the text, and where a stage needs gradients, or trains, back as well.
    In float16, whose range single tokens can leave, it reads all windows that are observed.

    Args:
        view: the model, which is left as it was.
        needs: of each stage.
        text: token ids, int64 [tokens].
        windows: that stages observe, int64 [windows, context]; None where none does.

    Raises:
        SpqError: what layers give, what enters them or gradients are not finite, or too large to be
            squared in float32; names the first place.
    """
    wanted = list(needs)
    ids = text[: TOKENS + min(room(view.model, TOKENS), 0)]
    check_vocabulary(view.model, ids)
    check_runs(view, ids)
    # A model that is larger than memory reads them layer by layer, when its turn comes.
    if windows is not None and view.model.dtype == torch.float16 and not is_bounded():
        for window in track(windows, "checking", total=len(windows)):
            check_runs(view, window)
    if any(need.any_windows for need in wanted):
        names = [n.name for n in view.linears() if not is_expert(view.model, n.name)]
        collect(view.model, ids[None], {Observation(name, "input") for name in names})
    # Gradients alike.
    if any(need.sensitivities or need.text for need in wanted) and not is_bounded():
        writers = [layer.writer.name for layer in view.layers if layer.writer is not None]
        collect_sensitivities(view, ids[None], [*writers, view.lm_head.name])
