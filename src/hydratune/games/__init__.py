"""Games of two players, the search over them, and matches. Public names are imported when they are asked for."""

from hydratune.config.public import lazily

__getattr__, __dir__ = lazily(__name__)
