"""Adapters of peft on compressed layers: LoRA, DoRA, IA3 and prompt tuning.

peft has no registry for layers of other libraries, so `registration` teaches it ours. It is
imported once peft is; see `spqlm.integrations`.
"""
