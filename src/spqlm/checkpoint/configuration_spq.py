"""Lets transformers read this checkpoint with trust_remote_code=True: it imports spqlm.

A copy of this file lies beside the weights of every checkpoint.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

import spqlm  # noqa: F401  (registers the format: pip install spqlm)


class SpqAutoConfig(PreTrainedConfig):
    """What `auto_map` names; the config is that of the model's own family."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """The family's config."""
        options.pop("trust_remote_code", None)
        return AutoConfig.from_pretrained(*arguments, **options, trust_remote_code=False)
