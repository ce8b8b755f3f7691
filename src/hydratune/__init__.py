"""hydratune: pretrain a network, fine-tune it on a new task, sweep learning rates and freezing strategies."""

__version__ = "0.1.0"
