"""`quant_method: spq` for transformers: rebuilds the structure before weights are read.

Imported while transformers itself is being imported (see `registration`), when its models cannot be
imported yet. What needs them is imported inside the functions.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from spqlm import native
from spqlm.checkpoint.headers import TensorHeader, read_header
from spqlm.checkpoint.saved import ADVICE, AUTO_MAP, Saved
from spqlm.checkpoint.spec import FORMAT_VERSION, WeightSpec, parse_spec
from spqlm.errors import CheckpointError
from spqlm.model.mixins import add_mixin, remove_mixin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHOD = "spq"
KEYS = {"quant_method", "format_version", "modules"}


@register_quantization_config(METHOD)
class SpqConfig(QuantizationConfigMixin):
    """The `quantization_config` of our checkpoints.

    Attributes:
        format_version: of the checkpoint.
        specs: what each module is, by full name.
    """

    def __init__(
        self,
        modules: dict[str, Any] | None = None,
        format_version: int | None = None,
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        """Validate; see `describe` for where `modules` comes from.

        Raises:
            CheckpointError: an unknown key or version, or a module entry that is not well formed.
        """
        if format_version != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint has format version {format_version!r}; "
                f"this version of spq reads version {FORMAT_VERSION}"
            )
        if unknown:
            raise CheckpointError(f"quantization_config has an unknown key {sorted(unknown)[0]!r}")
        if not isinstance(modules, dict) or not all(isinstance(name, str) for name in modules):
            raise CheckpointError("quantization_config, 'modules' is not a mapping of module names")
        self.specs = {name: parse_spec(name, entry) for name, entry in modules.items()}
        self.format_version = format_version
        self.quant_method = quant_method  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as it stands in config.json."""
        return {
            "quant_method": METHOD,
            "format_version": self.format_version,
            "modules": {name: spec.dump() for name, spec in self.specs.items()},
        }

    @property
    def guard(self) -> str | None:
        """Name of a dense weight that the checkpoint holds as a tensor of size zero.

        A loader that does not know this format would put random numbers where it finds no weight;
        a weight of the wrong size stops it.
        """
        names = [
            name
            for name, spec in self.specs.items()
            if isinstance(spec, WeightSpec)
            and not spec.dense
            and name.rpartition(".")[0] not in self.specs
        ]
        # An expert has a number, and its weight no name of its own in the dense model.
        names = [name for name in names if not name.rpartition(".")[2].isdigit()] or names
        # The last by name: not lm_head where there is another, since loaders skip a tied one.
        return f"{max(names)}.weight" if names else None


@register_quantizer(METHOD)
class SpqQuantizer(HfQuantizer):
    """Called by `from_pretrained` and `save_pretrained`; not for direct use."""

    requires_calibration = True
    quantization_config: SpqConfig

    def _process_model_before_weight_loading(
        self,
        model: "PreTrainedModel",
        dtype: torch.dtype | None = None,
        checkpoint_files: list[str] | None = None,
        **kwargs: Any,
    ) -> "PreTrainedModel":
        from spqlm.checkpoint.heads import check_state, own_name, seen_by
        from spqlm.checkpoint.structure import rebuild

        config = self.quantization_config
        guards = {ADVICE} | ({config.guard} if config.guard else set())
        config.specs = seen_by(model, config.specs)
        with torch.device("meta"):
            rebuild(model, config.specs, dtype or torch.get_default_dtype())
        ignored = {
            f"^{re.escape(own)}$" for name in guards for own in (name, own_name(model, name))
        }
        already = set(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = already | ignored
        if checkpoint_files is not None:
            found: dict[str, TensorHeader] = {}
            for file in checkpoint_files:
                found.update(read_header(Path(file)))
            check_state(model, {n: t for n, t in found.items() if n not in guards})
            model.__dict__["_spq_origin"] = Path(checkpoint_files[0]).parent
        return model

    def _process_model_after_weight_loading(
        self, model: "PreTrainedModel", **kwargs: Any
    ) -> "PreTrainedModel":
        from spqlm.checkpoint.structure import check_values

        if "cpu" in check_values(model):
            native.library()  # whoever waits for a slow answer should know why before it starts
        add_mixin(model, Saved)
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        """All weights multiplied out, layers that were cut filled up with zeros."""
        from spqlm.checkpoint.dense import densify

        densify(model)
        attach(model)
        return model.to(dtype)

    def get_state_dict_and_metadata(
        self, model: "PreTrainedModel"
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The state with the guard in it; see `SpqConfig.guard`."""
        state = model.state_dict()
        state[ADVICE] = torch.empty(0, dtype=model.dtype)
        guard = self.quantization_config.guard
        if guard is not None:
            state[guard] = torch.empty(0, dtype=model.dtype)
        return state, {}

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: Any = None
    ) -> list[Any]:
        """None: a checkpoint has the names and shapes that the model itself has."""
        # Transformers 5.19 gives no model.
        return []

    def is_serializable(self) -> bool:
        """Yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters may be trained on top."""
        return True

    @property
    def is_compileable(self) -> bool:
        """`generate` may compile the model where it has a cache of a fixed length."""
        return True


def attach(model: "PreTrainedModel") -> None:
    """Record a model's structure in its config, so that `save_pretrained` writes our format.

    A model without compressed modules is left, or made, an ordinary dense one.
    """
    from spqlm.checkpoint.structure import describe
    from spqlm.model.opening import close_layers

    close_layers(model)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    specs = describe(model)
    attributes: Any = model
    attributes.is_quantized = bool(specs)
    others = getattr(model.config, "auto_map", {})
    if not specs:
        model.__dict__.pop("hf_quantizer", None)
        remove_mixin(model, Saved)
        if others == AUTO_MAP:
            del model.config.auto_map
        return
    add_mixin(model, Saved)
    model.config.auto_map = others | AUTO_MAP
    config = SpqConfig({name: spec.dump() for name, spec in specs.items()}, FORMAT_VERSION)
    model.config.quantization_config = config
    attributes.hf_quantizer = SpqQuantizer(config, pre_quantized=True)
    attributes.quantization_method = METHOD
