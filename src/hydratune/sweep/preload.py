"""What every worker needs, imported once in the process that all of them are forked from. Nothing is computed here."""

import atexit
import os

import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin  # noqa: F401
import safetensors.torch  # noqa: F401
import torch._dynamo  # noqa: F401  at the first optimizer; a second of its own

import hydratune.data.images.image_dataset
import hydratune.experiment.run
import hydratune.freeze.strategies
import hydratune.sweep.estimate_costs
import hydratune.sweep.worker
import hydratune.tasks.classification  # noqa: F401
from hydratune.record import tensorboard

tensorboard.load()
# That process has nothing to put away, and torch takes a second to take itself apart; workers do not pass here.
atexit.register(os._exit, 0)
