"""`quant_method: spq` for transformers: rebuilds the structure before weights are read.

Imported while transformers itself is being imported (see `registration`), when its models cannot be
imported yet. What needs them is imported inside the functions.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from spqlm import native
from spqlm.checkpoint.headers import TensorHeader, check_tensors, read_header
from spqlm.checkpoint.spec import FORMAT_VERSION, ModuleSpec, WeightSpec, parse_spec
from spqlm.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHOD = "spq"


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
        from spqlm.checkpoint.structure import rebuild

        specs: dict[str, ModuleSpec] = self.quantization_config.specs
        with torch.device("meta"):
            rebuild(model, specs, dtype or torch.get_default_dtype())
        guard = self.quantization_config.guard
        if guard is not None:
            ignored = set(model._keys_to_ignore_on_load_unexpected or ())
            model._keys_to_ignore_on_load_unexpected = ignored | {f"^{guard}$".replace(".", r"\.")}
        if checkpoint_files is not None:
            found: dict[str, TensorHeader] = {}
            for file in checkpoint_files:
                found.update(read_header(Path(file)))
            tied = set(model.all_tied_weights_keys)
            expected = {n: t for n, t in model.state_dict().items() if n not in tied}
            check_tensors(expected, found, tied | ({guard} if guard else set()))
        return model

    def _process_model_after_weight_loading(
        self, model: "PreTrainedModel", **kwargs: Any
    ) -> "PreTrainedModel":
        from spqlm.checkpoint.structure import check_values

        if "cpu" in check_values(model):
            native.library()  # whoever waits for a slow answer should know why before it starts
        return model

    def get_state_dict_and_metadata(
        self, model: "PreTrainedModel"
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The state with the guard in it; see `SpqConfig.guard`."""
        state = model.state_dict()
        guard = self.quantization_config.guard
        if guard is not None:
            state[guard] = torch.empty(0, dtype=model.dtype)
        return state, {}

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

    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    specs = describe(model)
    if not specs:
        model.__dict__.pop("hf_quantizer", None)
        return
    config = SpqConfig({name: spec.dump() for name, spec in specs.items()}, FORMAT_VERSION)
    model.config.quantization_config = config
    attributes: Any = model
    attributes.hf_quantizer = SpqQuantizer(config, pre_quantized=True)
    attributes.is_quantized = True
    attributes.quantization_method = METHOD
