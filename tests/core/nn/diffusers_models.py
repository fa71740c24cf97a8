"""Networks of diffusers with random weights, and ours with the same: for the parity tests of latent diffusion."""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from core.weights import files


def save_random(model, folder):
  """A network of diffusers, in evaluation, every tensor moved at random (some start at zero), and saved to a folder."""
  import torch

  model = model.eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return model


def restored(network, weights, shapes, folder):
  """(our network, variables) of a folder; `weights`: a module of `core.weights`; `shapes`: network -> its variables."""
  tensors = files.read(folder)
  model = network(**weights.infer(tensors))
  wanted = flatten_dict(shapes(model)['params'], sep='/')
  loaded, account = weights.load(wanted, tensors)
  assert set(loaded) == set(wanted) and not account.ignored
  return model, {'params': unflatten_dict(loaded, sep='/')}


def torch_image(x):
  """NHWC numpy -> NCHW torch."""
  import torch

  return torch.tensor(np.moveaxis(x, -1, 1).copy())
