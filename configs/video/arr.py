"""ARR: action anticipation by recognition and sequence reasoning (Liu et al., TOMM 2024, arXiv 2408.02769).

  python -m launch.train --config=configs/video/arr.py --workdir=runs/arr

Presets:
  embedded       a procedural kitchen, filmed from above: recognition, label-free pre-training of the decoder, joint
                 training, pixels end to end. 6.6 minutes on two CPU cores, films and compilation included; top-1 about
                 31%, class-mean recall@5 about 73% (a bigram that knows the true past: 43 and 85).
  epic_labels    the decoder on the true label grids of EPIC-KITCHENS-100, beside n-grams: what sequence reasoning is
  egtea_labels   worth with a perfect recogniser. Need only the public annotation files: --config.data.root=FOLDER.
  salads_labels  About 10, 1 and 3 minutes on one CPU core. 50 Salads: five folds, a minute of history.
  paper_epic     pixels end to end: ViT-B/16 (in21k) per frame, AVT's decoder and recipe. Need annotation files
  paper_egtea    (data.root), videos (data.media_root; launch.prepare makes records of them) and a timm or transformers
  paper_salads   safetensors file (model.weights). Days on a node of GPUs: about 0.7 T multiply-adds per view.
  features_epic  the same decoder on RULSTM's feature stores (LMDB: rgb, flow, obj under data.media_root). Hours on one
                 GPU.

Any key can be overridden: --config.model.share_heads=False --config.grid.clips=60 --config.pretraining.steps=0
"""

from ml_collections import ConfigDict

PRESETS = (
  'embedded', 'epic_labels', 'egtea_labels', 'salads_labels', 'paper_epic', 'paper_egtea', 'paper_salads',
  'features_epic',
)  # fmt: skip


def get_config(preset: str = 'embedded') -> ConfigDict:
  """The experiment under one of `PRESETS`."""
  if preset == 'embedded':
    return embedded()
  if preset.endswith('_labels') and preset in PRESETS:
    return labels(preset.removesuffix('_labels'))
  if preset.startswith('paper_') and preset in PRESETS:
    return paper(preset.removeprefix('paper_'))
  if preset == 'features_epic':
    return features()
  raise ValueError(f'configs/video/arr.py has the presets {PRESETS}, not {preset!r}.')


def embedded() -> ConfigDict:
  """Minutes on two CPU cores: a drawn kitchen, a small ViT and a small decoder, all from scratch."""
  config = ConfigDict()
  config.system = 'video.arr'
  config.seed = 0

  config.data = ConfigDict()
  config.data.dataset = 'kitchen'  # or 'epic_kitchens_100', 'egtea', 'salads'
  config.data.fold = 1  # of egtea (1-3) and salads (1-5); set by the runs over `folds`
  config.data.folds = (1,)
  config.data.records = '~/.cache/verax/records'  # where launch.prepare writes and training reads
  config.data.root = ''  # folder of the annotation files; the kitchen needs none
  config.data.media = 'records'  # or 'videos', 'frames', 'lmdb', 'npy'; 'labels': the true labels instead of footage
  config.data.media_root = ''  # folder of the videos, frames or stores
  config.data.media_fps = 30.0  # of extracted frames and feature stores
  config.data.feature_size = 0  # numbers per feature vector
  config.data.fps = 4.0  # frames per second that records keep
  config.data.pixels = 48  # shorter side that records keep
  config.data.overwrite = False  # launch.prepare replaces records that were made with other settings
  config.data.transductive = False  # pre-training may also see footage that validation is anticipated from
  config.data.workers = 0
  config.data.seed = 0  # of the kitchen
  config.data.kitchen = ConfigDict({'train_videos': 48, 'val_videos': 20, 'seconds': 75})
  config.data.prototypes = ConfigDict({'size': 0, 'noise': 0.0})  # media 'labels': synthetic features instead

  config.grid = ConfigDict()
  config.grid.clips = 10  # T
  config.grid.spacing = 1.0  # seconds between clip ends; the method's choice is tau_a
  config.grid.anticipation = 1.0  # tau_a, seconds
  config.grid.frames = 2  # n
  config.grid.span = 0.5  # seconds that a clip covers

  config.augment = ConfigDict()
  config.augment.shorter = (48, 52)  # shorter side, random in training, the least in judgement
  config.augment.flip = False

  config.model = ConfigDict()
  config.model.encoder = 'frame_vit'
  config.model.variant = 'tiny_places8'
  config.model.image_size = 48
  config.model.width = 96  # of the encoders 'feature' and 'label'
  config.model.decoder = ConfigDict()
  config.model.decoder.aggregation = 'decoder'  # or 'last', 'mean', 'lstm'
  config.model.decoder.layers = 2
  config.model.decoder.heads = 4
  config.model.decoder.width = 128
  config.model.decoder.dropout = 0.1
  config.model.decoder.causal = True
  config.model.decoder.positions = True
  config.model.classifier_dropout = 0.2
  config.model.share_heads = True
  config.model.weights = ''
  config.model.dtype = 'float32'
  config.model.remat = False
  config.model.scan = False

  config.loss = ConfigDict()
  config.loss.recognition = 1.0  # lam_rec
  config.loss.past = 1.0  # lam_past
  config.loss.feature = 0.0  # lam_feat; 1.0: AVT's auxiliary
  config.loss.smoothing = 0.0
  config.loss.unknown = 'class'  # or 'ignore'
  config.loss.unknown_weight = 1.0  # 0: by counts, so that unknown does not dominate
  config.loss.pretraining = 'mse'  # or 'cosine', 'infonce', 'order'
  config.loss.temperature = 0.1

  config.recognition = stage(steps=1000, batch_size=48, learning_rate=2e-3)
  config.recognition.encoder_rate = 1.0
  config.pretraining = stage(steps=200, batch_size=16, learning_rate=1e-3)
  config.joint = stage(steps=600, batch_size=16, learning_rate=1e-3)
  config.joint.encoder_rate = 0.3  # of the learning rate

  config.train = ConfigDict()
  config.train.accumulate = 1
  config.train.log_every = 25
  config.train.eval_every = 0  # only at the end of a stage
  config.train.checkpoint_every = 200
  config.train.keep = 1

  config.eval = ConfigDict()
  config.eval.batch_size = 16
  config.eval.views = 1  # 3: crops; 6: and their mirrors
  config.eval.ngram_prior = 5.0  # strength of the unigram in the bigram
  config.eval.final = tuple((name, 'val') for name in ('anticipation', 'recognition', 'statistics'))

  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
  return config


def stage(steps: int, batch_size: int, learning_rate: float) -> ConfigDict:
  """A stage of AdamW with warm-up and cosine, our single-host default (spec 4.4); no steps: it is left out."""
  config = ConfigDict({'steps': steps, 'batch_size': batch_size})
  config.optim = ConfigDict()
  config.optim.name = 'adamw'
  config.optim.learning_rate = learning_rate
  config.optim.schedule = 'cosine'
  config.optim.warmup_steps = steps // 20
  config.optim.weight_decay = 0.05
  config.optim.momentum = 0.0
  config.optim.clip_norm = 1.0
  config.optim.ema_decay = 0.0
  return config


def labels(dataset: str) -> ConfigDict:
  """The decoder on true label grids: a perfect recogniser, so that nothing but the reasoning is judged (spec 9b)."""
  config = embedded()
  config.data.media = 'labels'
  config.model.encoder = 'label'
  config.model.width = config.model.decoder.width = 128
  config.model.share_heads = False
  config.loss.recognition = 0.0  # the label is what goes in
  config.recognition.steps = config.pretraining.steps = 0
  config.joint.encoder_rate = 1.0
  config.eval.batch_size = 256
  config.eval.final = (('anticipation', 'val'), ('statistics', 'val'))
  if dataset == 'epic':
    config.data.dataset = 'epic_kitchens_100'
    config.joint = stage(steps=3000, batch_size=64, learning_rate=1e-3)
  elif dataset == 'egtea':
    config.data.dataset = 'egtea'
    config.data.folds = (1,)
    config.grid.anticipation = config.grid.spacing = config.grid.span = 0.5
    config.joint = stage(steps=1500, batch_size=64, learning_rate=1e-3)
  else:
    config.data.dataset = 'salads'
    config.data.folds = (1, 2, 3, 4, 5)
    config.grid.clips = 60  # a minute: ten seconds hold little more than the current action
    config.eval.ngram_prior = 2.0
    config.model.width = config.model.decoder.width = 64  # spec 9b's prototype: 64 wide, about 40 epochs
    config.joint = stage(steps=475, batch_size=64, learning_rate=1e-3)
  config.joint.encoder_rate = 1.0
  return config


def paper(dataset: str) -> ConfigDict:
  """Pixels end to end with AVT's sizes and recipe, which ARR's are not known to differ from (spec 3.3, 4.4)."""
  config = embedded()
  config.data.media_fps = 0.0  # of extracted frames: as EPIC_100_video_info.csv says, video by video
  config.data.pixels = 280
  config.grid.frames = 4
  config.grid.span = 1.0
  config.data.workers = 8
  config.augment.shorter = (248, 280)
  config.augment.flip = True
  config.model.variant = 'base_patch16'
  config.model.image_size = 224
  config.model.weights = 'vit_base_patch16_224_in21k.safetensors'
  config.model.dtype = 'bfloat16'
  config.model.remat = True
  config.model.decoder.width = 2048
  config.eval.views = 6
  config.eval.batch_size = 8
  config.train.log_every = 50
  config.train.eval_every = 5000
  config.train.checkpoint_every = 1000
  config.recognition = stage(steps=20000, batch_size=64, learning_rate=1e-4)
  config.recognition.encoder_rate = 0.1
  config.pretraining = stage(steps=10000, batch_size=32, learning_rate=1e-4)
  if dataset == 'epic':  # AVT: SGD 1e-4 x 32 GPUs, 3 samples each, 50 epochs, 20 of them warm-up
    config.data.dataset = 'epic_kitchens_100'
    config.model.decoder.update({'layers': 6, 'heads': 4})
    config.joint = avt(steps=35000, warmup=14000, batch_size=96, learning_rate=3.2e-3, weight_decay=1e-6)
  elif dataset == 'egtea':
    config.data.dataset = 'egtea'
    config.data.media_fps = 30.0
    config.grid.anticipation = config.grid.spacing = config.grid.span = 0.5
    config.model.decoder.update({'layers': 2, 'heads': 4})
    config.loss.past = 0.1
    config.joint = avt(steps=870, warmup=435, batch_size=96, learning_rate=1.6e-2, weight_decay=1e-6)
  else:
    config.data.dataset = 'salads'
    config.data.media_fps = 30.0
    config.data.folds = (1, 2, 3, 4, 5)
    config.model.decoder.update({'layers': 8, 'heads': 8})
    config.model.classifier_dropout = 0.8
    config.eval.ngram_prior = 2.0
    config.joint = avt(steps=2400, warmup=240, batch_size=64, learning_rate=1.6e-5, weight_decay=1e-4, name='adam')
  return config


def avt(
  steps: int, warmup: int, batch_size: int, learning_rate: float, weight_decay: float, name: str = 'nesterov'
) -> ConfigDict:
  """AVT's published recipe: one learning rate for everything, warm-up, cosine."""
  config = stage(steps, batch_size, learning_rate)
  config.encoder_rate = 1.0
  config.optim.update({'name': name, 'warmup_steps': warmup, 'weight_decay': weight_decay})
  config.optim.momentum = 0.9 if name == 'nesterov' else 0.0
  return config


def features() -> ConfigDict:
  """EPIC-KITCHENS-100 on RULSTM's stores: 1024 (rgb) + 1024 (flow) + 352 (objects) numbers per frame at 30 fps."""
  config = paper('epic')
  config.data.media = 'lmdb'
  config.data.media_fps = 30.0
  config.data.feature_size = 2400
  config.grid.frames = 1
  config.model.encoder = 'feature'
  config.model.variant = 'linear'
  config.model.width = 1024
  config.model.weights = ''
  config.eval.views = 1
  config.eval.batch_size = 64
  config.recognition.steps = 0
  config.pretraining.batch_size = 128
  config.joint = avt(steps=26000, warmup=10500, batch_size=128, learning_rate=2e-3, weight_decay=1e-6)
  return config
