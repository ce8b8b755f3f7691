"""hydratune: pretrain a network, fine-tune it on a new task, sweep learning rates and freezing strategies."""

from hydratune.config.public import lazily
from hydratune.core.version import __version__ as __version__

__getattr__, __dir__ = lazily(__name__)
