"""The portrait world: small pictures of faces in which identity is coarse and fine, for personalisation (DDAP spec 9c).

A person is a set of colours and proportions and a fine stripe pattern on the skin, the high-frequency cue; a photo adds
what is not the person: place, size, brightness, background. Drawn in numpy, at 32 pixels in a fraction of a
millisecond, with the mask of the head beside it.

  identity = sample_identity(rng)
  image, mask = render(identity, sample_photo(rng), 32)

`dataset.examples` gives a training population and new people with the sets A, B and C of the Anti-DreamBooth protocol.
It is a drawing, not a photograph: it shows whether a method works, never how well it would do on people. For portraits
at 512 pixels see `core.synth.faces`.
"""

from core.synth.portraits.dataset import Config, examples
from core.synth.portraits.painter import Identity, Photo, render, sample_identity, sample_photo

__all__ = ('Config', 'Identity', 'Photo', 'examples', 'render', 'sample_identity', 'sample_photo')
