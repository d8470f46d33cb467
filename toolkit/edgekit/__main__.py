"""``python -m edgekit`` is ``edge``."""

from edgekit.cli import main

if __name__ == "__main__":
    main()
