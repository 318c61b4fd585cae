"""Calibration text and what is measured on it, gathered when the first stage needs it."""

from collections.abc import Callable
from hashlib import sha256

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spqlm import ranks
from spqlm.calibration.generated_text import generated_ids
from spqlm.calibration.needs import Needs
from spqlm.calibration.sensitivity import Passes, whole_model
from spqlm.calibration.statistics import Statistics, draw_windows
from spqlm.calibration.statistics_cache import cached_moments, cached_sensitivities
from spqlm.checkpoint.manifest import CalibrationRecord
from spqlm.data import GENERATED, EncodedText, Text, encode, fingerprint, load_text
from spqlm.data.sources import public_name
from spqlm.errors import SpqError
from spqlm.model.limits import check_context
from spqlm.model.view import ModelView


class CalibrationConfig(BaseModel):
    """The text that stages measure activations on and train on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(
        "builtin",
        description="text file, name in $SPQ_DATA_DIR, `builtin`, or `model` for what it writes",
    )
    windows: int = Field(32, ge=1, description="windows to measure activations on")
    context: int = Field(512, ge=2, description="tokens in each")


class Calibration:
    """Text and statistics for one run of a recipe; the text is read once.

    Attributes:
        record: of the text, for the manifest; None as long as nothing was read.
    """

    record: CalibrationRecord | None = None

    def __init__(
        self,
        config: CalibrationConfig,
        view: ModelView,
        tokenizer: PreTrainedTokenizerBase | None,
        seed: int,
        passes: Callable[[str], Passes] = lambda key: whole_model,
    ) -> None:
        """Nothing is read before it is asked for.

        Args:
            config: which text, and how much of it.
            view: the model, which stages may change between two calls.
            tokenizer: its tokenizer; None is an error only once text is read.
            seed: of the draws.
            passes: how gradients come about, by the key of that work.
        """
        self._config, self._view, self._tokenizer = config, view, tokenizer
        self._seed, self._passes = seed, passes
        self._ids: EncodedText | None = None

    @property
    def given(self) -> bool:
        """Whether there is a text, which the model does not have to write first."""
        return self._config.source != GENERATED

    @property
    def ids(self) -> EncodedText:
        """The text as tokens, whose windows begin as the tokenizer begins a text.

        Raises:
            SpqError: the model has no tokenizer, or the text cannot be used.
        """
        if self._ids is None:
            if self._tokenizer is None:
                raise SpqError("this recipe reads calibration text, but the model has no tokenizer")
            text, self._ids = self._read(self._tokenizer)
            self.record = CalibrationRecord(
                source=public_name(self._config.source),
                origin=text.origin,
                sha256=sha256(text.text.encode(errors="replace")).hexdigest(),
                tokens=len(self._ids),
                windows=self._config.windows,
                context=self._config.context,
                begins=self._ids.begins.tolist(),
                fingerprints=fingerprint(text.text),
            )
        return self._ids

    @property
    def windows(self) -> Tensor:
        """What stages observe, int64 [windows, context].

        Raises:
            SpqError: as for `ids`, or the windows do not suit the model.
        """
        size = self._config.context, self._config.windows
        return draw_windows(self._view.model, self.ids, *size, self._seed)

    def _read(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Text, EncodedText]:
        config = self._config
        if config.source == GENERATED:
            # As the model is when a stage first asks, which is dense where the first one does.
            check_context(self._view.model, config.context)
            size = config.windows, config.context
            # What another machine samples may differ by its rounding.
            [ids, *_] = ranks.together(generated_ids(self._view, tokenizer, *size, self._seed))
            origin = f"sampled from the model, seed {self._seed}"
            return Text(config.source, origin, (str(tokenizer.decode(ids.ids)),)), ids
        text = load_text(config.source, "calibration")
        return text, encode(tokenizer, text.text, minimum=config.context)

    def statistics(self, needs: Needs) -> Statistics:
        """What a stage needs, on the model as it is now; empty where it needs no windows.

        Raises:
            SpqError: as for `ids`, or the windows do not suit the model.
        """
        if not needs.any_windows:
            return Statistics()
        view, windows = self._view, self.windows
        statistics = Statistics(cached_moments(view, windows, needs.observations), windows=windows)
        if needs.sensitivities:
            found = cached_sensitivities(view, windows, needs.sensitivities, self._passes)
            statistics.sensitivities = found
        return statistics
