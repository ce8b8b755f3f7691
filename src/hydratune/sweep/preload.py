"""What every worker needs, imported once in the process that all of them are forked from. Nothing is computed here."""

import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import hydratune.job
import hydratune.sweep.survey
import hydratune.sweep.worker  # noqa: F401
