"""`python -m hydratune` is `hydratune`."""

from hydratune.cli import main

if __name__ == "__main__":
    main()
