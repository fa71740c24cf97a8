"""TRRG: truthful radiology reports with disease clues (Wang et al., MICCAI 2025, arXiv 2408.12141).

  python -m launch.train --config=configs/multimodal/trrg.py --workdir=runs/trrg

Presets:
  embedded    drawn chest films with grammatical reports: sentence-level contrast, zero-shot perception, a small LLaMA
              that learns the language of the reports, then reports from films and clues. 5 minutes on two CPU cores.
  iu_text     the public reports of IU-Xray without films: the clues are the labels of the reference itself, so that
              only the writer is judged. Needs indiana_reports.csv: --config.data.root=FOLDER.
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
  config.data.chest = ConfigDict({'train': 6000, 'val': 600, 'test': 300})

  config.augment = ConfigDict({'contrast': False, 'report': False})  # which stage sees changed films

  config.text = ConfigDict()
  config.text.tokenizer = ''  # '': trained on the reports
  config.text.vocabulary = 800  # of one that is trained, else the rows of the network's embedding table
  config.text.length = 24  # tokens of a sentence

  config.language = ConfigDict()
  config.language.tokenizer = ''
  config.language.vocabulary = 800
  config.language.length = 80  # T, tokens of a report, </s> included
  config.language.instruction = 'Describe the film.'  # R2GenGPT's is longer (paper)

  config.model = ConfigDict()
  config.model.vision = ConfigDict({'encoder': 'vit', 'variant': 'mini_patch16', 'weights': '', 'tuning': 'train'})
  config.model.text = ConfigDict({'variant': 'tiny', 'weights': '', 'pooling': 'mean'})
  config.model.contrast_width = 64
  config.model.views = 'mean'  # or 'concat'
  config.model.interaction = ConfigDict(
    {'enabled': True, 'width': 64, 'heads': 4, 'layers': 2, 'mlp_ratio': 2, 'dropout': 0.1, 'words': 8}
  )
  config.model.clues = ConfigDict({'limit': 6, 'inject': True})  # C, the most clues of a study
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
  config.clues.bank = 'sentences'  # of training, that say something of one observation alone; or 'prompts'
  config.clues.drop = 0.1  # share of training samples without their clues
  config.clues.replace = 0.05  # share of clues that become a wrong one
  config.clues.crossfit = 0  # 2: training clues come from a perception that has not seen the film

  config.contrast = stage(steps=1500, batch_size=64, learning_rate=1e-3)
  config.contrast.abnormal_first = 0.8  # p_abn; 0: uniform over sentences
  config.contrast.targets = 'label_match'
  config.language_model = stage(steps=300, batch_size=64, learning_rate=2e-3)
  config.report = stage(steps=500, batch_size=64, learning_rate=2e-3)
  config.report.vision_rate = 0.1  # of the learning rate

  config.train = ConfigDict()
  config.train.accumulate = 1
  config.train.log_every = 25
  config.train.eval_every = 0  # only at the end of a stage
  config.train.checkpoint_every = 350
  config.train.keep = 1

  config.decoding = ConfigDict({'preset': 'truthful', 'beams': 3, 'max_new_tokens': 80})

  config.eval = ConfigDict()
  config.eval.batch_size = 32
  config.eval.limit = 150  # reports written per split, spread over it; 0: all
  config.eval.references = ('full',)  # protocols, also 'r2gengpt', 'r2gen'
  config.eval.meteor = ('test',)  # splits of which METEOR is computed, where Java is there: ten seconds each
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


def iu_text() -> ConfigDict:
  """The writer alone, on real text: the labels of a report go in as clues, the report is to come out."""
  config = embedded()
  config.data.dataset = 'iu_xray'
  config.data.layout = 'kaggle'
  config.data.films = False
  config.language.vocabulary = 1500
  config.language.length = config.decoding.max_new_tokens = 96
  config.model.vision.encoder = 'none'
  config.clues.source = 'labels'
  config.contrast.steps = 0
  config.language_model = stage(steps=400, batch_size=32, learning_rate=2e-3)
  config.report = stage(steps=800, batch_size=32, learning_rate=2e-3)
  config.report.vision_rate = 1.0
  config.eval.limit = 200
  config.eval.final = (('report', 'test'), ('interventions', 'test'))
  return config


def paper() -> ConfigDict:
  """What both real presets share: ViT-B/16, Bio_ClinicalBERT and a LLaMA with LoRA (spec 3.1, 3.2, 3.7, 4)."""
  config = embedded()
  config.data.image_size = 224
  config.data.pixels = 256
  config.data.workers = 8
  config.augment.contrast = True
  config.clues.bank = 'prompts'
  config.text.tokenizer = config.model.text.weights = 'emilyalsentzer/Bio_ClinicalBERT'
  config.text.vocabulary = 28996
  config.text.length = 64
  config.language.vocabulary = 32000
  config.language.instruction = 'Generate a comprehensive and detailed diagnosis report for this chest xray image.'
  config.model.clues.limit = 13
  config.model.vision.variant = 'base_patch16'
  config.model.vision.weights = 'google/vit-base-patch16-224-in21k'
  config.model.text.variant = 'base'
  config.model.contrast_width = 512
  config.model.interaction.update({'width': 768, 'heads': 12, 'words': 16})
  config.model.language.update({'tuning': 'lora', 'dtype': 'bfloat16', 'param_dtype': 'bfloat16', 'remat': True})
  config.model.language.scan = True
  config.model.dtype = 'bfloat16'
  config.language_model.steps = 0  # the language model comes trained
  config.decoding.update({'beams': 0, 'max_new_tokens': 0})
  config.eval.batch_size = 16
  config.eval.references = ('full', 'r2gengpt', 'r2gen')
  config.mesh = ConfigDict({'data': 1, 'fsdp': -1, 'tensor': 1})
  return config


def iu_xray() -> ConfigDict:
  """IU-Xray, two views, TinyLlama (ungated); stage 1 from the 2,069 studies alone (our choice: 50 epochs)."""
  config = paper()
  config.data.dataset = 'iu_xray'
  config.data.views = 2
  config.model.language.variant = 'tinyllama_1b'
  config.model.language.weights = config.language.tokenizer = 'TinyLlama/TinyLlama-1.1B-Chat-v1.0'
  config.language.length = config.eval.reference_length = 60
  config.contrast = contrast(steps=400)
  config.report = report(steps=1950, batch_size=16)  # 15 epochs
  config.train.eval_every = 130
  return config


def mimic_cxr() -> ConfigDict:
  """MIMIC-CXR in R2Gen's form or its own, one view, LLaMA-2-7B-chat (gated: Meta's licence)."""
  config = paper()
  config.data.dataset = 'mimic_cxr'
  config.data.cleaning = 'r2gen_mimic'
  config.model.language.variant = 'llama2_7b'
  config.model.language.weights = config.language.tokenizer = 'meta-llama/Llama-2-7b-chat-hf'
  config.language.length = config.eval.reference_length = 100
  config.contrast = contrast(steps=10600)  # 10 epochs
  config.report = report(steps=42300, batch_size=32)  # 5 epochs
  config.train.eval_every = 4230
  config.eval.limit = 1000
  return config


def contrast(steps: int) -> ConfigDict:
  """Stage 1 as MedCLIP trains: AdamW 2e-5, decay 1e-4, batches of 256 (spec 4.1)."""
  config = stage(steps, batch_size=256, learning_rate=2e-5)
  config.optim.weight_decay = 1e-4
  config.abnormal_first = 0.8
  config.targets = 'label_match'
  return config


def report(steps: int, batch_size: int) -> ConfigDict:
  """Stage 2 as R2GenGPT trains: AdamW 1e-4, decay 0.01, cosine (spec 4.2)."""
  config = stage(steps, batch_size, learning_rate=1e-4)
  config.vision_rate = 0.1
  return config
