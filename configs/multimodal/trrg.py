"""TRRG: truthful radiology reports with disease clues (Wang et al., MICCAI 2025, arXiv 2408.12141).

  python -m launch.train --config=configs/multimodal/trrg.py --workdir=runs/trrg

Presets:
  embedded    drawn chest films with grammatical reports: sentence-level contrast, zero-shot perception, a small LLaMA
              that learns the language of the reports, then reports from films and clues. Minutes on two CPU cores.
  iu_text     the public reports of IU-Xray without films: the clues are the labels of the reference itself, so that only
              the writer is judged. Needs indiana_reports.csv: --config.data.root=FOLDER.
  iu_xray     ViT-B/16, Bio_ClinicalBERT, LLaMA with LoRA; R2Gen's package, Open-i's own files or Kaggle's tables under
  mimic_cxr   data.root; weights of the three networks as local folders or names on the Hub (model.*.weights).

Sizes, rates and prompts are our choices where the paper is silent (multimodal/trrg/README.md). Any key can be
overridden: --config.contrast.abnormal_first=0 --config.model.disease.loss=off --config.decoding.preset=r2gengpt
"""

from ml_collections import ConfigDict

PRESETS = ('embedded', 'iu_text', 'iu_xray', 'mimic_cxr')


def get_config(preset: str = 'embedded') -> ConfigDict:
  """The experiment under one of `PRESETS`."""
  if preset not in PRESETS:
    raise ValueError(f'configs/multimodal/trrg.py has the presets {PRESETS}, not {preset!r}.')
  return {'embedded': embedded, 'iu_text': iu_text, 'iu_xray': iu_xray, 'mimic_cxr': mimic_cxr}[preset]()


def embedded() -> ConfigDict:
  """Minutes on two CPU cores: drawn films, three small networks, all from scratch."""
  config = ConfigDict()
  config.system = 'multimodal.trrg'
  config.seed = 0

  config.data = ConfigDict()
  config.data.dataset = 'chest'  # or 'iu_xray', 'mimic_cxr'
  config.data.layout = 'auto'  # of the files under root: 'r2gen', 'r2gen_mimic', 'openi', 'kaggle', 'mimic'
  config.data.root = ''  # folder of the downloaded files; drawn films need none
  config.data.annotation = ''  # annotation.json, where it does not lie in root
  config.data.records = '~/.cache/verax/records'  # where launch.prepare writes and training reads
  config.data.overwrite = False  # launch.prepare replaces records that were made with other settings
  config.data.sections = 'findings'  # or 'findings+impression'
  config.data.films = True  # False: reports alone
  config.data.pixels = 64  # shorter side that records keep
  config.data.image_size = 64
  config.data.views = 1  # V, films per study
  config.data.labeller = 'rules'  # or the folder or file of CheXbert
  config.data.labeller_tokenizer = ''  # of CheXbert: the folder or name of bert-base-uncased
  config.data.cleaning = 'r2gen'
  config.data.workers = 0
  config.data.seed = 0  # of the drawn films
  config.data.chest = ConfigDict({'train': 2400, 'val': 300, 'test': 300})

  config.augment = ConfigDict({'contrast': True, 'report': False})  # which stage sees changed films

  config.text = ConfigDict()
  config.text.tokenizer = ''  # '': trained on the reports
  config.text.vocabulary = 400  # of one that is trained
  config.text.length = 32  # tokens of a sentence

  config.language = ConfigDict()
  config.language.tokenizer = ''
  config.language.vocabulary = 600
  config.language.length = 96  # T, tokens of a report, </s> included
  config.language.instruction = 'Generate a comprehensive and detailed diagnosis report for this chest xray image.'

  config.model = ConfigDict()
  config.model.vision = ConfigDict({'encoder': 'vit', 'variant': 'tiny_patch8', 'weights': '', 'tuning': 'train'})
  config.model.text = ConfigDict({'variant': 'tiny', 'weights': '', 'pooling': 'mean'})
  config.model.contrast_width = 64
  config.model.views = 'mean'  # or 'concat'
  config.model.interaction = ConfigDict(
    {'enabled': True, 'width': 96, 'heads': 4, 'layers': 2, 'mlp_ratio': 2, 'dropout': 0.1, 'words': 8}
  )
  config.model.clues = ConfigDict({'limit': 13, 'inject': True})  # C, the most clues of a study
  config.model.language = ConfigDict()
  config.model.language.variant = 'tiny'
  config.model.language.weights = ''
  config.model.language.tuning = 'full'  # or 'lora', 'frozen'
  config.model.language.lora = ConfigDict({'rank': 16, 'alpha': 16.0, 'dropout': 0.1, 'targets': ('query', 'value')})
  config.model.language.dtype = 'float32'
  config.model.language.param_dtype = 'float32'  # of the frozen base
  config.model.language.remat = False
  config.model.language.scan = False
  config.model.disease = ConfigDict({'loss': 'full', 'weight': 0.5, 'consistency': 0.5})  # lambda, beta
  config.model.dtype = 'float32'  # of the encoders

  config.clues = ConfigDict()
  config.clues.source = 'perceived'  # or 'labels': those of the reference, where there is no film to perceive from
  config.clues.drop = 0.1  # share of training samples without their clues
  config.clues.replace = 0.05  # share of clues that become a wrong one
  config.clues.crossfit = 0  # 2: training clues come from a perception that has not seen the film

  config.contrast = stage(steps=700, batch_size=64, learning_rate=1e-3)
  config.contrast.abnormal_first = 0.8  # p_abn; 0: uniform over sentences
  config.contrast.targets = 'label_match'
  config.language_model = stage(steps=300, batch_size=64, learning_rate=2e-3)
  config.report = stage(steps=700, batch_size=32, learning_rate=1e-3)
  config.report.vision_rate = 0.1  # of the learning rate

  config.train = ConfigDict()
  config.train.accumulate = 1
  config.train.log_every = 25
  config.train.eval_every = 0  # only at the end of a stage
  config.train.checkpoint_every = 350
  config.train.keep = 1

  config.decoding = ConfigDict({'preset': 'truthful', 'beams': 3, 'max_new_tokens': 96})

  config.eval = ConfigDict()
  config.eval.batch_size = 32
  config.eval.limit = 0  # reports written per split, spread over it; 0: all
  config.eval.references = ('full',)  # protocols, also 'r2gengpt', 'r2gen'
  config.eval.reference_length = 100  # tokens that the protocols cut references to
  config.eval.final = (
    ('perception', 'test'), ('report', 'test'), ('interventions', 'test'),
  )  # fmt: skip

  config.predict = ConfigDict({'clues': 'auto'})  # or 'none', or names: 'edema,pleural effusion'

  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
  return config


def stage(steps: int, batch_size: int, learning_rate: float) -> ConfigDict:
  """A stage of AdamW with warm-up and cosine; no steps: it is left out."""
  config = ConfigDict({'steps': steps, 'batch_size': batch_size})
  config.optim = ConfigDict()
  config.optim.name = 'adamw'
  config.optim.learning_rate = learning_rate
  config.optim.schedule = 'cosine'
  config.optim.warmup_steps = steps // 10
  config.optim.weight_decay = 0.01
  config.optim.momentum = 0.0
  config.optim.clip_norm = 1.0
  config.optim.ema_decay = 0.0
  return config
