"""The overrides that make the embedded experiment of DDAP small enough for a test."""

CONFIG = 'configs/generative/ddap.py'
SMALL = {
  'data.portraits.identities': 3, 'data.portraits.photos': 2, 'data.portraits.test': 2,
  'data.portraits.sets.A': 2, 'data.portraits.sets.B': 2, 'data.portraits.sets.C': 2,
  'autoencoder.steps': 0, 'diffusion.steps': 0,  # random weights: the foundation has tests of its own
  'protect.methods': ('random', 'ddap', 'spl+mask'), 'method.outer': 1, 'surrogate.steps': 1,
  'personalise.steps': 2, 'prior.count': 2, 'purify.operators': ('jpeg:75', 'autoencoder'),
  'train.log_every': 1, 'train.checkpoint_every': 2, 'eval.batch_size': 4, 'eval.generated': 2, 'eval.steps': 2,
}  # fmt: skip
