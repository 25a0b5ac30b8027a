"""``python -m ki67``."""

from ki67.cli import main

if __name__ == "__main__":
    main()
