"""A key/value cache that a token can be added to without copying what is there."""

import math
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

STEP = 256
"""Capacity grows to a multiple of this many positions."""


class Growing:
    """States [batch, heads, length, width] at the start of a buffer that may hold more."""

    def __init__(self, states: Tensor) -> None:
        """Hold `states`, in a buffer of just their length."""
        self.buffer = states
        self.length = states.shape[-2]

    @property
    def states(self) -> Tensor:
        """What is held, [batch, heads, length, width]: a view."""
        return self.buffer[:, :, : self.length]

    def hold(self, states: Tensor) -> None:
        """Hold these instead; the first of the present ones stay where they are."""
        same = states.data_ptr() == self.buffer.data_ptr()
        if same and states.stride() == self.buffer.stride() and len(states) == len(self.buffer):
            self.length = states.shape[-2]
        else:
            self.__init__(states)  # type: ignore[misc]

    def reserve(self, length: int) -> None:
        """Grow the buffer to `length` positions, and at once to half as many again."""
        batch, heads, capacity, width = self.buffer.shape
        # What was made in inference mode may not be written to outside of it.
        locked = self.buffer.is_inference() and not torch.is_inference_mode_enabled()
        if length <= capacity and self.buffer.is_contiguous() and not locked:
            return
        capacity = STEP * math.ceil(1.5 * length / STEP)
        larger = self.buffer.new_empty(batch, heads, capacity, width)
        larger[:, :, : self.length] = self.states
        self.buffer = larger

    def append(self, states: Tensor) -> None:
        """Add positions behind the present ones."""
        length = self.length + states.shape[-2]
        self.reserve(length)
        self.buffer[:, :, self.length : length] = states
        self.length = length


class GrowingLayer(DynamicLayer):
    """One layer's keys and values; what cache layers of transformers can do, this one can.

    Attributes:
        owner: whatever belongs to the cache as a whole; the same object in all its layers.
    """

    def __init__(self, owner: Any) -> None:
        """Empty."""
        self.held: tuple[Growing, Growing] | None = None
        super().__init__()
        self.owner = owner

    # The base class keeps its states in `keys` and `values`, and assigns to them.
    @property
    def keys(self) -> Tensor | None:
        """[batch, heads, length, width], or None while empty."""
        return None if self.held is None else self.held[0].states

    @keys.setter
    def keys(self, states: Tensor | None) -> None:
        self._assign(0, states)

    @property
    def values(self) -> Tensor | None:
        """[batch, heads, length, width], or None while empty."""
        return None if self.held is None else self.held[1].states

    @values.setter
    def values(self, states: Tensor | None) -> None:
        self._assign(1, states)

    def _assign(self, which: int, states: Tensor | None) -> None:
        if states is None:
            self.held = None
        elif self.held is not None:
            self.held[which].hold(states)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take shapes, dtype and device from the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.held = (Growing(key_states[:, :, :0]), Growing(value_states[:, :, :0]))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add positions; returns all keys and all values."""
        if self.held is None:
            self.lazy_initialization(key_states, value_states)
        assert self.held is not None
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            # Autograd needs what it saw to stay as it was.
            for growing, states in zip(self.held, (key_states, value_states), strict=True):
                growing.hold(torch.cat([growing.states, states], dim=-2))
        else:
            self.held[0].append(key_states)
            self.held[1].append(value_states)
        return self.held[0].states, self.held[1].states
