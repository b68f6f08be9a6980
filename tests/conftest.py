"""What all tests share: one thread, because small products on two cores wait for each other more than they compute."""

import logging

import torch

torch.set_num_threads(1)
logging.getLogger("millstream").setLevel(logging.ERROR)
