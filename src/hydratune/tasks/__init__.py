from hydratune.config.public import lazily

__getattr__, __dir__ = lazily(__name__)
