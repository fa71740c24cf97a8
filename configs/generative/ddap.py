"""DDAP: dual-domain anti-personalisation (Yang et al., IJCB 2024, arXiv 2407.20141).

  python -m launch.train --config=configs/generative/ddap.py --workdir=runs/ddap

Presets:
  embedded    drawn portraits of 32 pixels: an autoencoder and two small latent diffusion models, one that protects and
              one that it never sees; every method of `protect.methods` on the photos of new persons; a DreamBooth
              attacker on what each of them leaves. Some 13 minutes on two CPU cores.
  sd15        Stable Diffusion 1.5 or 2.1-base at 512 pixels from a local diffusers folder, on folders of persons laid
  sd21        out as <root>/<identity>/set_{A,B,C}: the protocol of Anti-DreamBooth. A GPU.
                --config.model.path=FOLDER --config.data.root=FOLDER [--config.transfer.path=FOLDER]
  fast        what `launch.predict` needs for one photo without a GPU: only the encoder is attacked, there is no U-Net
              step and no surrogate. Random weights unless --config.model.path=FOLDER says otherwise.

Only the paper's abstract was read: every number here is a choice of ours, most of them Anti-DreamBooth's
(generative/ddap/README.md). Budgets are in 8-bit levels: 6.375 of them are the 0.05 that the field writes for -1..1.
"""

from ml_collections import ConfigDict

PRESETS = ('embedded', 'sd15', 'sd21', 'fast')


def get_config(preset: str = 'embedded') -> ConfigDict:
  """The experiment under one of `PRESETS`."""
  if preset not in PRESETS:
    raise ValueError(f'configs/generative/ddap.py has the presets {PRESETS}, not {preset!r}.')
  return {'embedded': embedded, 'sd15': sd15, 'sd21': sd21, 'fast': fast}[preset]()


def embedded() -> ConfigDict:
  """Minutes on two CPU cores: everything is small, drawn, and trained from nothing (spec 9c)."""
  config = ConfigDict()
  config.system = 'generative.ddap'
  config.seed = 0

  config.model = ConfigDict()
  config.model.variant = 'tiny'
  config.model.path = ''  # a diffusers folder; '': trained by the first stages
  config.model.size = 32  # pixels along a side
  config.model.dtype = 'float32'  # of computation; parameters are f32
  config.model.remat = False

  config.transfer = ConfigDict()  # a model of other weights that protection never sees
  config.transfer.enabled = True
  config.transfer.path = ''  # a diffusers folder; '': trained too, where model.path is ''

  config.prompts = ConfigDict()
  config.prompts.instance = 'a photo of sks person'
  config.prompts.prior = 'a photo of person'
  config.prompts.noun = 'person'  # what is localised

  config.data = ConfigDict()
  config.data.dataset = 'portraits'  # or 'identities': folders of real photos
  config.data.root = ''  # <root>/<identity>/set_{A,B,C}; drawn portraits need none
  config.data.list = ''  # CSV file of the sets in raw VGGFace2 or CelebA-HQ under root; made where it is not there
  config.data.records = '~/.cache/verax/records'
  config.data.overwrite = False
  config.data.seed = 0  # of the drawn portraits
  config.data.portraits = ConfigDict({'identities': 300, 'photos': 12, 'test': 4, 'sets': {'A': 4, 'B': 4, 'C': 32}})
  config.data.limit = 0  # identities that are protected and attacked; 0: all

  config.autoencoder = stage(steps=800, batch_size=24, learning_rate=3e-3)
  config.diffusion = stage(steps=1200, batch_size=32, learning_rate=3e-3)

  # Threads, each of which protects or attacks a person: networks this small leave half of two cores idle.
  config.workers = 2

  config.protect = ConfigDict()
  config.protect.methods = ('random', 'aspl', 'latent', 'spl', 'fpl', 'ddap', 'ddap+mask')
  config.protect.mask = 'data'  # where '+mask' asks for one: that of the record, or 'localise': by cross-attention
  config.protect.micro = 0  # photos whose gradients are computed at a time, for less memory; 0: all
  config.method = ConfigDict()  # any field of methods.Method, for all methods alike
  config.method.eps_levels = 12.75  # 0.1 in -1..1
  config.method.step_levels = 1.275
  config.method.outer = 10  # rounds of: surrogate on set A, attack, model on the protected photos
  config.method.fsmg_steps = 120
  config.localise = ConfigDict({'kind': 'hard', 'threshold': 0.4, 'dilate': 1, 'block': 8, 'passes': 10})

  config.surrogate = personalise(steps=3, learning_rate=1e-4, instance_batch=4, prior_batch=4)  # of the protector
  config.personalise = personalise(steps=120, learning_rate=1e-4, instance_batch=4, prior_batch=4)  # the attacker
  config.prior = ConfigDict({'count': 64, 'batch_size': 16, 'steps': 20, 'guidance': 1.0})  # class photos, made once

  config.purify = ConfigDict()
  config.purify.method = 'ddap'  # what it left is purified
  config.purify.operators = ('jpeg:75', 'resize:0.5', 'diffusion:0.3')

  config.predict = ConfigDict()  # `launch.predict` on a user's photos
  config.predict.method = 'ddap'
  config.predict.reference = ''  # folder of clean photos of the person that surrogates learn from; '': those given
  config.predict.masks = ''  # folder of masks with the photos' names, for methods with '+mask'; '': localised

  config.train = ConfigDict()
  config.train.accumulate = 1
  config.train.log_every = 100
  config.train.eval_every = 0  # only at the end of a stage
  config.train.checkpoint_every = 500
  config.train.keep = 1

  config.eval = ConfigDict()
  config.eval.batch_size = 32
  config.eval.prompts = ('a photo of sks person',)  # what the attacker asks for
  config.eval.generated = 4  # photos per prompt and identity
  config.eval.transfer = ('random', 'spl', 'ddap')  # methods that the second model is tried on as well
  config.eval.steps = 20  # of the sampler
  config.eval.guidance = 3.0
  config.eval.detector = 'haar'  # of faces, or a YuNet .onnx file
  config.eval.embedder = ''  # of faces: an ArcFace-like .onnx file; '': no ISM
  config.eval.lpips = ()  # two .safetensors files, see core.metrics.quality.load_lpips; (): no LPIPS
  config.eval.brisque = ''  # folder of OpenCV's brisque_model_live.yml and brisque_range_live.yml; '': no BRISQUE
  config.eval.final = (
    ('model', 'test'), ('visibility', 'test'), ('protection', 'test'), ('purification', 'test'),
  )  # fmt: skip

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


def personalise(steps: int, learning_rate: float, instance_batch: int, prior_batch: int) -> ConfigDict:
  """A DreamBooth recipe: AdamW at a constant rate, clipped at 1, with prior preservation (spec 4)."""
  config = ConfigDict({'steps': steps, 'learning_rate': learning_rate, 'weight_decay': 1e-2, 'clip_norm': 1.0})
  config.update({'prior_weight': 1.0, 'instance_batch': instance_batch, 'prior_batch': prior_batch})
  config.update({'train_text': True, 'lora_rank': 0, 'lora_alpha': 1.0})
  return config


def protocol() -> ConfigDict:
  """What both real presets share: Anti-DreamBooth's protocol and numbers (spec 4, 5)."""
  config = embedded()
  config.model.update({'size': 512, 'dtype': 'bfloat16', 'remat': True})
  config.workers = 0  # one person after the other
  config.transfer.enabled = False  # or --config.transfer.enabled=true --config.transfer.path=FOLDER
  config.data.dataset = 'identities'
  config.data.limit = 50
  config.protect.methods = ('random', 'aspl', 'spl', 'fpl', 'ddap', 'ddap+mask')
  config.protect.mask = 'localise'
  config.protect.micro = 1
  config.method.update({'eps_levels': 6.375, 'step_levels': 0.6375, 'outer': 50, 'fsmg_steps': 1000})  # 0.05 in -1..1
  config.localise.dilate = 8
  config.predict.method = 'ddap+mask'
  config.purify.operators = ('jpeg:75', 'blur:1', 'resize:0.5', 'bilateral:30', 'autoencoder', 'diffusion:0.3')
  config.surrogate = personalise(steps=3, learning_rate=5e-7, instance_batch=1, prior_batch=1)
  config.personalise = personalise(steps=1000, learning_rate=5e-7, instance_batch=2, prior_batch=2)
  config.prior = ConfigDict({'count': 200, 'batch_size': 8, 'steps': 100, 'guidance': 7.5})
  config.eval.batch_size = 8
  config.eval.prompts = ('a photo of sks person', 'a dslr portrait of sks person')
  config.eval.generated = 16
  config.eval.steps = 100
  config.eval.guidance = 7.5
  config.eval.final = (*config.eval.final, ('faces', 'test'))
  config.mesh = ConfigDict({'data': 1, 'fsdp': 1, 'tensor': 1})
  return config


def sd15() -> ConfigDict:
  """Stable Diffusion 1.5 (or 1.4), by --config.model.path."""
  config = protocol()
  config.model.variant = 'sd1'
  return config


def sd21() -> ConfigDict:
  """Stable Diffusion 2.1-base, by --config.model.path: the model of Anti-DreamBooth's tables."""
  config = protocol()
  config.model.variant = 'sd2'
  return config


def fast() -> ConfigDict:
  """The encoder alone: no U-Net in the attack, no surrogate, f32."""
  config = protocol()
  config.model.update({'variant': 'sd1', 'dtype': 'float32', 'remat': False})
  config.protect.methods = ('fast',)
  config.method.outer = 10
  config.predict.method = 'fast'
  config.autoencoder.steps = config.diffusion.steps = 0
  return config
