"""Adapters on the CPU, computed adapter by adapter.

vLLM's CPU kernels copy an adapter's weights, padded to `max_lora_rank`, for every token. A token
without an adapter has the index -1 there, which they take for the last slot: the base model, too,
pays for it, and beside requests of adapters it answers with the weights of whatever adapter is in
there (https://github.com/vllm-project/vllm/pull/48421). Here an adapter's tokens are multiplied
with its weights where they lie, and the others are left alone.

Runs in vLLM's worker; imports nothing of the project.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Rows: TypeAlias = slice | torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The tokens of one adapter in a step: its slot, and their rows.

    `rows` is a slice where they follow one another, otherwise the indices (tokens of the group).
    """

    slot: int
    rows: Rows


def groups_of(indices: torch.Tensor) -> list[Group]:
    """A step's groups; `indices` (tokens) has each token's slot, -1 without an adapter."""
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(indices.tolist()):
        if slot >= 0:
            rows_of.setdefault(slot, []).append(row)
    return [Group(slot=slot, rows=_rows(rows)) for slot, rows in rows_of.items()]


def _rows(rows: list[int]) -> Rows:
    span = slice(rows[0], rows[-1] + 1)
    return span if span.stop - span.start == len(rows) else torch.tensor(rows)


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # it is Any to mypy
    """What vLLM's layers call, the tokens of each step grouped once.

    Shapes: x (tokens, in), lora_a (slots, 1, rank, in), lora_b (slots, 1, out, rank),
    y (tokens, out).
    """

    groups: Sequence[Group] = ()
    answer_groups: Sequence[Group] = ()
    """The same of the rows that tokens are sampled from."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take in a step's tokens."""
        super().update_metadata(*args, **kwargs)
        self.groups = groups_of(self.token_lora_indices)
        self.answer_groups = groups_of(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        lora_b_stacked: Sequence[torch.Tensor],
        scale: float,
        output_slices: Sequence[int],
        **kwargs: Any,
    ) -> None:
        """`y += scale * x @ lora_a[i] @ lora_b[i]` in the columns of `output_slices[i]`."""
        del kwargs
        for group in self.groups:
            inputs = x[group.rows]
            begin = 0
            for lora_a, lora_b, width in zip(
                lora_a_stacked, lora_b_stacked, output_slices, strict=True
            ):
                columns = y[:, begin : begin + width]
                _add_product(columns, group, _shrunk(inputs, group, lora_a), lora_b, scale)
                begin += width

    def add_shrink(
        self, y: Sequence[torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any
    ) -> None:
        """VLLM's own, for `fully_sharded_loras`, with nothing for tokens without an adapter.

        What `add_expand` makes of that is nothing as well. y[i] (tokens, rank).
        """
        super().add_shrink(y, x, *args, **kwargs)
        for shrunk in y:
            shrunk.masked_fill_((self.token_lora_indices < 0).unsqueeze(1), 0)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **kwargs: Any
    ) -> None:
        """`y += x @ lora_b`; x (tokens, rank) has the tokens' rows of lora_a."""
        del kwargs
        for group in self.groups:
            _add_product(_flat(y), group, _flat(x)[group.rows], lora_b_stacked)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """`y += scale * x @ lora_a @ lora_b` for the rows that tokens are sampled from."""
        del kwargs
        for group in self.answer_groups:
            shrunk = _shrunk(_flat(x)[group.rows], group, lora_a_stacked)
            _add_product(_flat(y), group, shrunk, lora_b_stacked, scale)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1, tensor.shape[-1])


def _shrunk(inputs: torch.Tensor, group: Group, lora_a: torch.Tensor) -> torch.Tensor:
    """From (tokens of the group, in) to (…, rank), in float32 as vLLM does it."""
    return torch.mm(inputs.to(torch.float32), lora_a[group.slot, 0].to(torch.float32).t())


def _add_product(
    output: torch.Tensor,
    group: Group,
    inputs: torch.Tensor,
    lora_b: torch.Tensor,
    scale: float = 1,
) -> None:
    """Add `scale * inputs @ lora_b` to the group's rows of output (tokens, out), in its type.

    inputs (tokens of the group, rank). Logits may have fewer columns than their lora_b.
    """
    inputs = inputs.to(output.dtype)
    weights = lora_b[group.slot, 0, : output.shape[1]].to(output.dtype).t()
    if isinstance(group.rows, slice):
        output[group.rows, : weights.shape[1]].addmm_(inputs, weights, alpha=scale)
    else:
        product = torch.mm(inputs, weights)
        output[:, : weights.shape[1]].index_add_(0, group.rows, product, alpha=scale)
