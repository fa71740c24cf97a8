"""The face world: procedural faces, their motion, and the physics of photographing them once or twice.

A face is drawn from parameters (`params`), painted by implicit shapes on the pixel grid into linear light (`painter`),
with the 68 landmarks on the very curves that were painted (`anatomy`); a camera makes it a picture (`camera`); printed
or shown on a screen, the picture goes before a camera again (`attacks`). `domains` bundles cameras, lights, printers
and screens into data collections, `dataset` makes frames and clips of them. Everything is a pure function of keys and
arrays: jit it, vmap it, at any size up to 512.

What each system finds here:
  domain-generalised anti-spoofing  `dataset.examples`: live / print / replay frames of four capture domains, with the
      physics of every frame in `info`.
  identity-based anti-spoofing  `Config(shared_subjects=True)`: the same people, stable in shape, skin and marks, over
      all domains and attacks (subject id = identity key).
  video anti-spoofing  `dataset.clip`: frames of head motion, blinks and speech, live or presented, with their tracks of
      68 landmarks.
  expression recognition  `params.sample_expression(key, expression, intensity)`: the seven basic expressions, neutral
      to full strength, on any identity.
  photo protection  `dataset.portraits`: sets of portraits of one person at 512 px under changing pose and light.

It is a drawing, not a photograph: it shows whether a method works, never how well it would do on people.
"""

from core.synth.faces.attacks import Placement, PrintParams, ReplayParams, print_attack, replay_attack
from core.synth.faces.camera import CameraParams, capture
from core.synth.faces.dataset import ATTACKS, Config, clip, examples, portraits
from core.synth.faces.domains import DOMAINS
from core.synth.faces.painter import render
from core.synth.faces.params import (
  EXPRESSIONS,
  Background,
  Expression,
  FaceParams,
  Identity,
  Light,
  Pose,
  sample_background,
  sample_expression,
  sample_face,
  sample_identity,
  sample_light,
  sample_pose,
)

__all__ = (
  'ATTACKS',
  'DOMAINS',
  'EXPRESSIONS',
  'Background',
  'CameraParams',
  'Config',
  'Expression',
  'FaceParams',
  'Identity',
  'Light',
  'Placement',
  'Pose',
  'PrintParams',
  'ReplayParams',
  'capture',
  'clip',
  'examples',
  'portraits',
  'print_attack',
  'render',
  'replay_attack',
  'sample_background',
  'sample_expression',
  'sample_face',
  'sample_identity',
  'sample_light',
  'sample_pose',
)
