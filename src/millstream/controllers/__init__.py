"""What changes while a ``fit`` goes on, and who decides it: told about each step and epoch, with a state of its own.

plan       what was asked for: sizes and numbers, or ``auto``
noise      the gradient noise scale, from norms at two batch sizes
batches    the batch size, which follows the noise
memory     the largest batch that fits
patience   the rate falls when the validation stops improving, and training ends
schedules  torch's own schedules, by name, with warm-up
controller all of these for one phase
"""

from millstream.controllers.controller import Controller
from millstream.controllers.memory import largest_batch
from millstream.controllers.noise import NoiseScale
from millstream.controllers.plan import Count, Plan

__all__ = ["Controller", "Count", "NoiseScale", "Plan", "largest_batch"]
