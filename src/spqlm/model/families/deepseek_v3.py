"""DeepSeek-V3 and R1: built like DeepSeek-V2."""

from spqlm.model.families.deepseek_v2 import FAMILY as FAMILY
