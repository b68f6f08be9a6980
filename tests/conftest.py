"""What all tests share: one thread, because small products on two cores wait for each other more than they compute.

And one cache of compiled loops, found before a test gives its own folder for data sets to ``MILLSTREAM_CACHE``.
"""

import logging

import torch

from millstream.engines.kernels import compiled

torch.set_num_threads(1)
compiled.cache_folder()
logging.getLogger("millstream").setLevel(logging.ERROR)
