"""What a compressed model does beyond its class in transformers: saves every file, takes tokens.

Imported while transformers is being imported, so what needs its models is imported in functions.
"""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from spqlm.checkpoint.manifest import FILE as MANIFEST
from spqlm.model.mixins import Mixin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOADER = Path(__file__).with_name("configuration_spq.py")
AUTO_MAP = {"AutoConfig": "configuration_spq.SpqAutoConfig"}
CARD = "README.md"
# The name of an empty tensor: loaders that do not know the format list the tensors that they do not
# know, and so say this.
ADVICE = "pip install spqlm, then import spqlm"

logger = logging.getLogger(__name__)


class Saved(Mixin):
    """Methods of every model in our format."""

    lasting = True
    # Directory that it was loaded from.
    _spq_origin: Path | None = None

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """As in transformers, with the loader and, if nothing has changed, the records."""
        super().save_pretrained(save_directory, **options)  # type: ignore[misc]
        self._complete(Path(save_directory))

    def _upload_modified_files(self, working_dir: str | Path, *args: Any, **options: Any) -> Any:
        # `push_to_hub` has just written a card of its own over ours.
        self._complete(Path(working_dir))
        return super()._upload_modified_files(working_dir, *args, **options)  # type: ignore[misc]

    def _complete(self, directory: Path) -> None:
        if not (directory / "config.json").exists():  # an adapter was saved, and nothing else
            return
        shutil.copyfile(LOADER, directory / LOADER.name)
        origin = self._spq_origin
        if origin is None or origin.resolve() == directory.resolve():
            return
        records = [origin / name for name in (MANIFEST, CARD) if (origin / name).exists()]
        if records and _tensors_agree(origin, directory):
            for file in records:
                shutil.copyfile(file, directory / file.name)

    def resize_token_embeddings(self, *arguments: Any, **options: Any) -> Any:
        """As in transformers; the embedding and the head are dense from then on.

        New tokens have to be trained, and codes cannot be.
        """
        _thaw_embeddings(self)  # type: ignore[arg-type]
        return super().resize_token_embeddings(*arguments, **options)  # type: ignore[misc]


def _thaw_embeddings(model: "PreTrainedModel") -> None:
    """Make a compressed embedding and output layer dense, in place."""
    from spqlm.checkpoint.dense import multiply_out
    from spqlm.checkpoint.quantizer import attach
    from spqlm.model.memory import resident_bytes
    from spqlm.model.view import ModelView
    from spqlm.modules.linear import Compressed

    view = ModelView(model)
    ends = [view.embedding] if view.tied else [view.embedding, view.lm_head]
    names = [named.name for named in ends if isinstance(named.module, Compressed)]
    if not names:
        return
    before = resident_bytes(model)
    multiply_out(view, names)
    attach(model)
    grown = (resident_bytes(model) - before) / 1e6
    logger.warning("the embedding is dense now, so that new tokens can train: %.1f MB more", grown)


def _tensors_agree(one: Path, other: Path) -> bool:
    """Whether two directories hold the same tensors, in whatever files."""
    places = [_places(directory) for directory in (one, other)]
    if places[0].keys() != places[1].keys():
        return False
    return all(torch.equal(_read(places[0][n], n), _read(places[1][n], n)) for n in places[0])


def _places(directory: Path) -> dict[str, Path]:
    """The file of each tensor."""
    found: dict[str, Path] = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= dict.fromkeys(set(tensors.keys()) - {ADVICE}, file)
    return found


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as tensors:
        found: torch.Tensor = tensors.get_tensor(name)
    return found
