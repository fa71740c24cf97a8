"""Perturbations of bounded size that raise a loss: pure functions of arrays, for any loss and any network.

  x, losses = pgd(lambda x, key: loss_of(x), x0, key, epsilon=8 / 127.5, step=1 / 127.5, steps=40)

projection.py keeps a perturbed image within its budget, gradient.py moves it along a gradient. Whoever perturbs images
takes the step from here (`move`), whatever the direction comes from.
"""

from core.attacks.gradient import fgsm, move, pgd, random_signs, random_start, sign_step
from core.attacks.projection import project, radius

__all__ = ['fgsm', 'move', 'pgd', 'project', 'radius', 'random_signs', 'random_start', 'sign_step']
