"""What a compressed model does beyond its class in transformers: saves every file, takes tokens.

Imported while transformers is being imported, so what needs its models is imported in functions.
"""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spqlm.checkpoint.hashes import hash_files, hash_tensors
from spqlm.checkpoint.manifest import CARD, FILE, read_manifest, write_manifest
from spqlm.model.mixins import Mixin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOADER = Path(__file__).with_name("configuration_spq.py")
AUTO_MAP = {"AutoConfig": "configuration_spq.SpqAutoConfig"}
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
        # Under the model's own names; others are those of its dense weights alone.
        options.setdefault("save_original_format", False)
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
        manifest = None if origin is None else read_manifest(origin)
        # One of an earlier version has no hashes, so nothing says whether it is still true.
        same = origin is not None and origin.resolve() == directory.resolve()
        if same and manifest is not None and not manifest.tensors:
            return
        if manifest is None or manifest.tensors != hash_tensors(directory):
            _drop_records(directory)
            return
        # The config is written anew, and a tokenizer may follow: what is there now is hashed.
        known = {"files": hash_files(directory)}
        write_manifest(manifest.model_copy(update=known), directory)
        if origin is not None and not same and (origin / CARD).exists():
            shutil.copyfile(origin / CARD, directory / CARD)

    def resize_token_embeddings(self, *arguments: Any, **options: Any) -> Any:
        """As in transformers; the embedding and the head are dense from then on.

        New tokens have to be trained, and codes cannot be.
        """
        _thaw_embeddings(self)  # type: ignore[arg-type]
        return super().resize_token_embeddings(*arguments, **options)  # type: ignore[misc]


def _drop_records(directory: Path) -> None:
    """Remove a manifest that an earlier save left, and its card: they are of other weights."""
    if (directory / FILE).exists():
        (directory / FILE).unlink()
        (directory / CARD).unlink(missing_ok=True)


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
