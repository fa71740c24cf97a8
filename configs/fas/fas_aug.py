"""FAS-Aug + SARE: cross-domain face anti-spoofing (Cai, Soh et al., IJCV 2025, arXiv 2409.03501).

  python -m launch.train --config=configs/fas/fas_aug.py --workdir=runs/fas_aug

Presets:
  embedded  the procedural face world, four capture domains, leave one out: four trainings of a small ViT from scratch.
            About 3 minutes on two CPU cores, the data included; mean video AUC of the four targets about 0.90.
  release   what the authors' released code does: ViT-B/16 + ConvPass on a frozen ImageNet backbone, MICO, SARE and the
            live-contrastive term. Needs the five datasets (launch.prepare) and a timm or transformers ViT-B/16
            safetensors file (config.model.weights). Hours on one GPU.
  paper     the same without the contrastive term, which only the code has, and with inputs normalised as the
            checkpoint was trained.

Any key can be overridden: --config.optim.learning_rate=3e-4 --config.augment.bag=trad --config.data.protocol='OCI->M'.
"""

from ml_collections import ConfigDict


def get_config(preset: str = 'embedded') -> ConfigDict:
  """The experiment under a preset: 'embedded', 'release' or 'paper'."""
  if preset == 'embedded':
    return embedded()
  if preset == 'release':
    return published()
  if preset == 'paper':
    config = published()
    config.loss.contrastive_weight = 0.0
    config.model.normalize = 'unit_half'
    return config
  raise ValueError(f"configs/fas/fas_aug.py has the presets 'embedded', 'release' and 'paper', not '{preset}'.")


def embedded() -> ConfigDict:
  """Minutes on two CPU cores: procedural faces, a small backbone trained from scratch."""
  config = ConfigDict()
  config.system = 'fas.fas_aug'
  config.seed = 0

  config.data = ConfigDict()
  config.data.kind = 'face_world'  # or 'videos': public datasets, your own folders and lists
  config.data.records = '~/.cache/verax/records'  # where launch.prepare writes and training reads
  config.data.root = ''  # where official downloads lie; the face world needs none
  config.data.dataset = ''  # names the dataset that root holds, where its folder's name does not
  config.data.overwrite = False  # launch.prepare replaces records that were made with other settings
  config.data.protocol = 'leave_one_out'
  config.data.domains = ('laptop', 'phone', 'tablet', 'dslr')
  config.data.seed = 0  # of the face world, and of which subjects are held out
  config.data.size = 64
  config.data.videos = (2, 1, 1)  # live, print, replay videos per subject of the face world
  config.data.subjects = 24
  config.data.frames_per_video = 4
  config.data.augmented_frames_per_video = 2
  config.data.validation_fraction = 0.15
  config.data.margin = 0.2  # of crops: frames the face like the face world does
  config.data.detector = 'haar'
  config.data.workers = 0

  config.model = ConfigDict()
  config.model.backbone = 'vit'
  config.model.variant = 'tiny_patch8'
  config.model.image_size = 64
  config.model.adapter = 'convpass'
  config.model.adapter_dropout = 0.1
  config.model.freeze = False
  config.model.weights = ''
  config.model.normalize = 'unit_half'
  config.model.dtype = 'float32'
  config.model.remat = False
  config.model.scan = False

  config.augment = ConfigDict()
  config.augment.bag = 'fas'
  config.augment.domains = 3
  config.augment.sub_policies = 5
  config.augment.refresh = 'epoch'  # or 'image': a sub-policy of its own for every image
  config.augment.assets = ConfigDict()  # folders of your own; empty: procedural textures, parametric inks
  config.augment.assets.cmyk_dir = ''
  config.augment.assets.rgb_dir = ''
  config.augment.assets.reflection_dir = ''
  config.augment.assets.blue_noise_dir = ''
  config.augment.assets.moire_dir = ''
  config.augment.assets.parity = False  # as the release draws them

  config.loss = ConfigDict()
  config.loss.sare_weight = 10.0
  config.loss.sare_samples = 'spoof'
  config.loss.sare_missing = 'mask'
  config.loss.sare_anneal_steps = 0
  config.loss.contrastive_weight = 0.02
  config.loss.contrastive_temperature = 0.1
  config.loss.class_balance = False

  config.optim = ConfigDict()
  config.optim.name = 'adam'
  config.optim.learning_rate = 1e-3
  config.optim.schedule = 'cosine'
  config.optim.warmup_steps = 20
  config.optim.weight_decay = 0.0
  config.optim.momentum = 0.0
  config.optim.clip_norm = 1.0
  config.optim.ema_decay = 0.0

  config.train = ConfigDict()
  config.train.batch_per_domain = 4
  config.train.steps = 300
  config.train.epochs = 0  # used when steps is 0
  config.train.accumulate = 1
  config.train.log_every = 20
  config.train.eval_every = 100
  config.train.checkpoint_every = 150
  config.train.keep = 1

  config.eval = ConfigDict()
  config.eval.batch_size = 64
  config.eval.monitor = 'frame/eer'  # chooses the checkpoint, on held-out source subjects
  config.eval.select_on_target = False  # True: on the target, as published tables do; the number is then optimistic
  config.eval.final = (('biometrics', 'val'), ('biometrics', 'test'), ('artefacts', 'test'))

  config.mesh = ConfigDict()
  config.mesh.data = -1
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  return config


def published() -> ConfigDict:
  """The authors' released settings on the real datasets (spec: sections 3.3, 4, 5, 6)."""
  config = embedded()
  config.data.kind = 'videos'
  config.data.protocol = 'MICO'
  config.data.domains = ('msu_mfsd', 'replay_attack', 'casia_fasd', 'oulu_npu', 'rose_youtu')
  config.data.size = 256
  config.data.frames_per_video = 5
  config.data.margin = 0.0
  config.data.validation_fraction = 0.1  # held-out source subjects; the release holds out none, selects on the target
  config.data.workers = 8

  config.model.variant = 'base_patch16'
  config.model.image_size = 224
  config.model.freeze = True
  config.model.weights = 'vit_base_patch16_224.safetensors'
  config.model.normalize = 'none'
  config.model.dtype = 'bfloat16'

  config.optim.learning_rate = 1e-4
  config.optim.warmup_steps = 0
  config.optim.clip_norm = 0.0

  config.train.steps = 0
  config.train.epochs = 200
  config.train.log_every = 50
  config.train.eval_every = 1000
  config.train.checkpoint_every = 1000
  return config
