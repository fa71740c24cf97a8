"""The networks of `benchmarks.anticipation` in PyTorch, of transformers' blocks, as its users write them: eager.

The same layers as `video.arr.model`: LayerNorm and a linear layer, or a ViT's class token averaged over frames; a
linear layer into GPT-2 without its vocabulary and one out of it; one classifier for both heads. The same losses, AdamW
(fused), clipping of the gradient norm. Attention is torch's fused one (transformers' default).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional

from benchmarks.anticipation_cases import Case
from core.nn import vit
from core.train import memory


class Frames(nn.Module):
  """uint8 [B, T, n, 3, H, W] -> [B, T, D]."""

  def __init__(self, case: Case):
    super().__init__()
    sizes = vit.VARIANTS[case.variant]
    config = transformers.ViTConfig(
      hidden_size=sizes['width'], num_hidden_layers=sizes['depth'], num_attention_heads=sizes['heads'],
      intermediate_size=sizes['mlp_dim'], image_size=case.size, patch_size=sizes['patch'], layer_norm_eps=1e-6,
    )  # fmt: skip
    self.vit = transformers.ViTModel(config, add_pooling_layer=False)

  def forward(self, pixels: torch.Tensor) -> torch.Tensor:
    batch, clips, frames = pixels.shape[:3]
    images = (pixels.flatten(0, 2).float() / 255 - 0.5) / 0.5
    token = self.vit(pixel_values=images).last_hidden_state[:, 0]
    return token.unflatten(0, (batch, clips, frames)).mean(2)


class Anticipator(nn.Module):
  """What `video.arr.model.Anticipator` is with shared heads."""

  def __init__(self, case: Case):
    super().__init__()
    width = case.width
    linear = [nn.LayerNorm(case.size, eps=1e-6), nn.Linear(case.size, width)]
    self.encoder = nn.Sequential(*linear) if case.encoder == 'feature' else Frames(case)
    config = transformers.GPT2Config(
      vocab_size=1, n_positions=case.clips, n_embd=case.decoder_width, n_layer=case.layers, n_head=case.heads,
      resid_pdrop=0.1, attn_pdrop=0.1, embd_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    self.enter = nn.Linear(width, case.decoder_width, bias=False)
    self.gpt = transformers.GPT2Model(config)
    del self.gpt.wte  # there are no words
    self.leave = nn.Linear(case.decoder_width, width, bias=False)
    self.dropout, self.head = nn.Dropout(0.2), nn.Linear(width, case.classes + 1)
    nn.init.normal_(self.head.weight, std=0.01)

  def reason(self, z: torch.Tensor) -> torch.Tensor:
    return self.leave(self.gpt(inputs_embeds=self.enter(z)).last_hidden_state)

  def classify(self, features: torch.Tensor) -> torch.Tensor:
    return self.head(self.dropout(features))

  def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = self.encoder(inputs)
    return self.classify(z), self.classify(self.reason(z))


def tensor(inputs: np.ndarray) -> torch.Tensor:
  """Inputs as torch wants them: channels before pixels."""
  return torch.tensor(np.ascontiguousarray(np.moveaxis(inputs, -1, -3)) if inputs.ndim == 6 else inputs)


def network(case: Case) -> Anticipator:
  """On as many threads as there are cores."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  return Anticipator(case)


def step(case: Case, our_allocator: bool) -> Callable[[], tuple[float, int]]:
  """A function that takes a training step: (its loss, numbers trained).

  Args:
    our_allocator: freed memory stays in the process, as `core.train.backend.setup` has it for ours.
  """
  if our_allocator:
    memory.keep_freed()
  model = network(case).train()
  decayed = [leaf for leaf in model.parameters() if leaf.ndim > 1]
  others = [leaf for leaf in model.parameters() if leaf.ndim < 2]
  groups = [{'params': decayed, 'weight_decay': 0.05}, {'params': others, 'weight_decay': 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
  trained = sum(leaf.numel() for leaf in model.parameters())
  rows = case.rows()
  inputs, labels, target = tensor(rows['inputs']), *(torch.tensor(rows[key]).long() for key in ('label', 'target'))

  def run() -> tuple[float, int]:
    optimizer.zero_grad()
    r, q = model(inputs)
    past = functional.cross_entropy(q[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    recognition = functional.cross_entropy(r.flatten(0, 1), labels.flatten())
    loss = functional.cross_entropy(q[:, -1], target) + past + recognition
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), trained

  return run


def stream(case: Case, anew: bool, steps: int) -> Callable[[], list[tuple[float, float]]]:
  """A function that takes `steps` steps of a stream: (encoder ms, decoder ms) of each.

  The decoder runs over all T clips at every step. Args: anew: the encoder too, not only over the newest clip.
  """
  model = network(case).eval()
  clips = tensor(case.rows()['inputs'])
  with torch.inference_mode():
    ring = model.encoder(clips)

  @torch.inference_mode()
  def one() -> tuple[float, float]:
    nonlocal ring
    start = time.perf_counter()
    if anew:
      ring = model.encoder(clips)
    else:
      ring = torch.cat([ring[:, 1:], model.encoder(clips[:, -1:])], dim=1)
    functional.softmax(model.classify(ring[:, -1]), -1)
    encoded = time.perf_counter()
    functional.softmax(model.classify(model.reason(ring)[:, -1, :])[:, :-1], -1).numpy()
    return 1000 * (encoded - start), 1000 * (time.perf_counter() - encoded)

  return lambda: [one() for _ in range(steps)]
