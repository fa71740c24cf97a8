"""The overrides that make the embedded experiment small enough for a test."""

CONFIG = 'configs/multimodal/trrg.py'
SMALL = {
  'data.chest.train': 24, 'data.chest.val': 8, 'data.chest.test': 8, 'data.pixels': 32, 'data.image_size': 32,
  'text.vocabulary': 200, 'text.length': 12, 'language.vocabulary': 320, 'language.length': 24,
  'model.contrast_width': 8, 'model.interaction.width': 16, 'model.interaction.layers': 1, 'model.clues.limit': 2,
  'model.interaction.words': 4, 'train.log_every': 1, 'train.checkpoint_every': 2, 'eval.batch_size': 8,
  'decoding.max_new_tokens': 12, 'decoding.preset': 'greedy', 'decoding.beams': 1,
  **{f'{stage}.{key}': value for stage in ('contrast', 'language_model', 'report')
     for key, value in (('steps', 2), ('batch_size', 4), ('optim.warmup_steps', 0))},
}  # fmt: skip
