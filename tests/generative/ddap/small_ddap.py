"""The overrides that make the embedded experiment of DDAP small enough for a test."""

CONFIG = 'configs/generative/ddap.py'
SMALL = {
  'data.portraits.identities': 3, 'data.portraits.photos': 2, 'data.portraits.test': 2,
  'data.portraits.sets.A': 2, 'data.portraits.sets.B': 2, 'data.portraits.sets.C': 2,
  'autoencoder.steps': 2, 'autoencoder.batch_size': 4, 'autoencoder.optim.warmup_steps': 0,
  'diffusion.steps': 2, 'diffusion.batch_size': 4, 'diffusion.optim.warmup_steps': 0,
  'protect.methods': ('random', 'ddap', 'spl+mask'), 'method.outer': 1, 'surrogate.steps': 1,
  'personalise.steps': 2, 'prior.count': 2, 'purify.operators': ('jpeg:75', 'autoencoder'),
  'train.log_every': 1, 'train.checkpoint_every': 2, 'eval.batch_size': 4, 'eval.generated': 2, 'eval.steps': 2,
}  # fmt: skip
