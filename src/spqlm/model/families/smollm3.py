"""SmolLM3: Llama's layout, some layers without rotary positions."""

from spqlm.model.families.base import Family

FAMILY = Family()
