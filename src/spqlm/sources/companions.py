"""Files beside a model that say what images, videos and sounds become before it reads them."""

from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

# What transformers' processors write, and their chat templates.
FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def companions(name: str, config: Any) -> tuple[Path, ...]:
    """Files of a model's processor; none of a model that reads text alone, whose tokenizer is all.

    Args:
        name: hub id or directory.
        config: of the model.
    """
    if config.get_text_config() is config:
        return ()
    if Path(name).is_dir():
        found = [Path(name) / file for file in FILES]
    else:
        # A hub that cannot be reached has given all that there is before.
        quiet = dict.fromkeys(("missing_entries", "connection_errors"), False)
        options: Any = {f"_raise_exceptions_for_{kind}": raised for kind, raised in quiet.items()}
        paths = [cached_file(name, file, **options) for file in FILES]
        found = [Path(path) for path in paths if path is not None]
    return tuple(file for file in found if file.is_file())
