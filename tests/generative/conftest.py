"""Networks for what runs whole commands: their time is that of compiling."""

import pytest

from core.nn import autoencoder, clip, unet

NETWORKS = {
  autoencoder: {'channels': (8,), 'groups': 4},
  unet: {'channels': (8,), 'cross': (False,), 'heads': 1, 'groups': 4, 'context_width': 16},
  clip: {'width': 16, 'mlp_dim': 16},
}


@pytest.fixture(scope='module')
def smaller_networks():
  """The variants 'tiny', of one level each."""
  with pytest.MonkeyPatch.context() as patch:
    for network, changes in NETWORKS.items():
      patch.setitem(network.VARIANTS, 'tiny', {**network.VARIANTS['tiny'], **changes})
    yield
