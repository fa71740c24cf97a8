"""DreamBooth: a text-to-image model learns a person (Ruiz et al., CVPR 2023, arXiv 2208.12242), in full or by LoRA.

  python -m launch.train --config=configs/generative/dreambooth.py --workdir=runs/dreambooth

Presets:
  embedded    drawn portraits of 32 pixels: an autoencoder and a small latent diffusion model, then one new person.
              Minutes on two CPU cores.
  lora        the same with low-rank updates to the attention alone.
  sd15        Stable Diffusion 1.5 or 2.1-base at 512 pixels from a local diffusers folder, on folders of persons laid
  sd21        out as <root>/<identity>/set_{A,B,C}: the attack of Anti-DreamBooth. A GPU of 40 GB; with
              --config.personalise.lora_rank=4 --config.personalise.learning_rate=1e-4 one of 16 GB (our estimates).
                --config.model.path=FOLDER --config.data.root=FOLDER --config.data.identity=NAME

Then: launch.predict --workdir=runs/dreambooth --input prompts.txt --output=out, and
launch.convert --layout=diffusers --workdir=runs/dreambooth --output=FOLDER for a folder that diffusers opens.
"""

from ml_collections import ConfigDict

PRESETS = ('embedded', 'lora', 'sd15', 'sd21')


def get_config(preset: str = 'embedded') -> ConfigDict:
  """The experiment under one of `PRESETS`."""
  if preset not in PRESETS:
    raise ValueError(f'configs/generative/dreambooth.py has the presets {PRESETS}, not {preset!r}.')
  return {'embedded': embedded, 'lora': lora, 'sd15': sd15, 'sd21': sd21}[preset]()


def embedded() -> ConfigDict:
  """Minutes on two CPU cores: everything is small, drawn, and trained from nothing (DDAP spec 9c)."""
  config = ConfigDict()
  config.system = 'generative.dreambooth'
  config.seed = 0

  config.model = ConfigDict()
  config.model.variant = 'tiny'
  config.model.path = ''  # a diffusers folder; '': trained by the first stages
  config.model.size = 32  # pixels along a side
  config.model.dtype = 'float32'  # of computation; parameters are f32
  config.model.remat = False

  config.transfer = ConfigDict({'enabled': False, 'path': ''})  # a second model, which only DDAP has

  config.prompts = ConfigDict()
  config.prompts.instance = 'a photo of sks person'
  config.prompts.prior = 'a photo of person'
  config.prompts.noun = 'person'

  config.data = ConfigDict()
  config.data.dataset = 'portraits'  # or 'identities': folders of real photos
  config.data.root = ''  # <root>/<identity>/set_{A,B,C}; drawn portraits need none
  config.data.identity = ''  # whom to learn; '': the first
  config.data.learn = 'B'  # the set to learn from, 'A' or 'B'; C is judged on
  config.data.list = ''  # CSV file of the sets in raw VGGFace2 or CelebA-HQ under root; made where it is not there
  config.data.records = '~/.cache/verax/records'
  config.data.overwrite = False
  config.data.seed = 0  # of the drawn portraits
  config.data.portraits = ConfigDict({'identities': 300, 'photos': 12, 'test': 4, 'sets': {'A': 4, 'B': 4, 'C': 32}})

  config.autoencoder = stage(steps=1000, batch_size=24, learning_rate=3e-3)
  config.diffusion = stage(steps=2000, batch_size=32, learning_rate=3e-3)

  config.personalise = personalise(steps=120, learning_rate=1e-4, batch=4)
  config.prior = ConfigDict({'count': 16, 'batch_size': 16, 'steps': 20, 'guidance': 1.5})  # class photos, made once

  config.predict = ConfigDict({'count': 4, 'seed': 0, 'steps': 20, 'guidance': 3.0})  # photos per prompt

  config.train = ConfigDict()
  config.train.accumulate = 1
  config.train.log_every = 20
  config.train.eval_every = 0  # only at the end of a stage
  config.train.checkpoint_every = 500
  config.train.keep = 1

  config.eval = ConfigDict()
  config.eval.batch_size = 16
  config.eval.prompts = ('a photo of sks person', 'a photo of person')
  config.eval.generated = 8  # photos per prompt
  config.eval.steps = 20  # of the sampler
  config.eval.guidance = 3.0
  config.eval.detector = ''  # of faces: 'haar', or a YuNet .onnx file; '': neither FDFR nor ISM
  config.eval.embedder = ''  # of faces: an ArcFace-like .onnx file; '': no ISM
  config.eval.final = (('model', 'test'), ('personalisation', 'test'))

  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
  return config


def stage(steps: int, batch_size: int, learning_rate: float) -> ConfigDict:
  """A stage of AdamW with warm-up and cosine; no steps: it is left out."""
  config = ConfigDict({'steps': steps, 'batch_size': batch_size})
  config.optim = ConfigDict()
  config.optim.name = 'adamw'
  config.optim.learning_rate = learning_rate
  config.optim.schedule = 'cosine'
  config.optim.warmup_steps = steps // 20
  config.optim.weight_decay = 0.0
  config.optim.momentum = 0.0
  config.optim.clip_norm = 1.0
  config.optim.ema_decay = 0.0
  return config


def personalise(steps: int, learning_rate: float, batch: int) -> ConfigDict:
  """AdamW at a constant rate, clipped at 1, with prior preservation (DDAP spec 4); `batch` of each kind of photo."""
  config = ConfigDict({'steps': steps, 'learning_rate': learning_rate, 'weight_decay': 1e-2, 'clip_norm': 1.0})
  config.update({'prior_weight': 1.0, 'instance_batch': batch, 'prior_batch': batch})
  config.update({'train_text': True, 'lora_rank': 0, 'lora_alpha': 4.0})  # rank 0: all weights learn
  return config


def lora() -> ConfigDict:
  """Rank 4 with a rate ten times as high, as is the habit."""
  config = embedded()
  config.personalise.update({'learning_rate': 5e-3, 'lora_rank': 4})
  return config


def protocol() -> ConfigDict:
  """What both real presets share: the attacker of Anti-DreamBooth (DDAP spec 4, 5)."""
  config = embedded()
  config.model.update({'size': 512, 'dtype': 'bfloat16', 'remat': True})
  config.data.dataset = 'identities'
  config.personalise = personalise(steps=1000, learning_rate=5e-7, batch=2)
  config.prior = ConfigDict({'count': 200, 'batch_size': 8, 'steps': 100, 'guidance': 7.5})
  config.predict.update({'steps': 50, 'guidance': 7.5})
  config.eval.batch_size = 8
  config.eval.prompts = ('a photo of sks person', 'a dslr portrait of sks person')
  config.eval.generated = 16
  config.eval.steps = 100
  config.eval.guidance = 7.5
  config.eval.detector = 'haar'
  config.mesh = ConfigDict({'data': 1, 'fsdp': -1, 'tensor': 1})
  return config


def sd15() -> ConfigDict:
  """Stable Diffusion 1.5 (or 1.4), by --config.model.path."""
  config = protocol()
  config.model.variant = 'sd1'
  return config


def sd21() -> ConfigDict:
  """Stable Diffusion 2.1-base, by --config.model.path."""
  config = protocol()
  config.model.variant = 'sd2'
  return config
